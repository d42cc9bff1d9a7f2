"""Wait for a device: the clock may stop only when the queued work is done."""

from __future__ import annotations

from collections.abc import Callable

from prunebench.callbacks import ignore


def synchroniser(device: str) -> Callable[[], None]:
    """A call that waits until ``device`` ('cpu', 'cuda', 'cuda:0') has done its queued work."""
    if not device.startswith("cuda"):
        return ignore  # CPU calls are synchronous; nothing to wait for
    import torch

    return torch.cuda.synchronize
