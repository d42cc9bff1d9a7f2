"""How many token windows go through a model together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens per batch and device type.

Enough to keep matrix products busy: on a CPU half as many take 6 % longer. Few enough that the
allocator can reuse the memory of activations.
"""


def windows_per_batch(length: int, device: torch.device) -> int:
    """How many windows of ``length`` tokens make one batch on ``device``; at least one."""
    return max(1, tokens_per_batch(device) // length)


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Consecutive entries as batches of at most ``tokens`` with padding, at least one entry each.

    ``lengths`` begin with the longest, so that those of a batch are of almost one length.
    """
    start = 0
    while start < len(lengths):
        end = start + max(1, tokens // lengths[start])
        yield slice(start, end)
        start = end


def tokens_per_batch(device: torch.device) -> int:
    """How many tokens make one batch on ``device``."""
    return BATCH_TOKENS.get(device.type, 2048)
