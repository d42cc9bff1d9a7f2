"""The last hidden states of a model over some windows: one pass serves all measures of its logits.

A token's state takes a fraction of its logits (576 numbers instead of 49,152), so the states of a
whole text can be kept, and the head makes logits of a slice of them again.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from prunebench.callbacks import ignore
from prunebench.errors import PrunebenchError
from prunebench.measure.quality.split_model import SplitModel
from prunebench.model.batches import windows_per_batch
from prunebench.model.cache import cache_dir
from prunebench.model.placement import input_device
from prunebench.model.tensor_folder import SPARE_BYTES

LARGEST_BYTES = 1 << 30
"""States of more bytes are not kept; a measure that needs them then makes a pass of its own."""

_SHARE_OF_MEMORY = 4


@dataclass(frozen=True)
class FinalStates:
    """Final hidden states, and the head that makes logits of them."""

    states: Tensor  # [windows, length, hidden], on the CPU
    head: Any

    def logits(self, window: int, part: slice) -> Tensor:
        """The logits after the tokens ``part`` of a window, [tokens, vocabulary]."""
        weight = self.head.weight
        device = "cpu" if weight.is_meta else weight.device
        found: Tensor = self.head(self.states[window, part].to(device))
        return found


def fits(model: Any, windows: Tensor) -> bool:
    """Whether the states of ``model`` on int64 ``windows`` are small enough to be kept."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    size = windows.numel() * head.weight.shape[-1] * head.weight.element_size()
    available = psutil.virtual_memory().available
    return bool(size <= min(LARGEST_BYTES, available // _SHARE_OF_MEMORY))


@torch.no_grad()
def states_of(
    split: SplitModel, windows: Tensor, progress: Callable[[int, int], None] = ignore
) -> Tensor:
    """The final states of one pass over int64 [windows, length]: [windows, length, hidden], CPU.

    The batches are those of perplexity, so that both passes give the same bits.
    """
    size = windows_per_batch(windows.shape[1], windows.device)
    found = []
    for start in range(0, len(windows), size):
        batch = windows[start : start + size]
        found.append(split.decoder(batch, use_cache=False).last_hidden_state.cpu())
        progress(min(start + size, len(windows)), len(windows))
    return torch.cat(found)


class StatesOnDisk:
    """Takes the states of a pass batch by batch, for measures that come later in the same process.

    They go to a file without a name, so that they are in no memory figure of the phases between,
    and so that nothing is left if the process is killed. If the disk has no room for all
    ``windows`` they are lost, which costs another pass.
    """

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._file: IO[bytes] | None = None
        self._shape: list[int] = []
        self._dtype = torch.float32
        self._failed = False

    def __call__(self, states: Tensor) -> None:
        """Add the states of the next windows, [windows, length, hidden]."""
        if self._failed:
            return
        try:
            if self._file is None:
                folder = cache_dir()
                folder.mkdir(parents=True, exist_ok=True)
                size = self._windows * states[:1].nbytes
                if shutil.disk_usage(folder).free - size < SPARE_BYTES:
                    self._failed = True
                    return
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see `close`
                self._shape, self._dtype = [0, *states.shape[1:]], states.dtype
            bits = states.cpu().contiguous().view(torch.uint8).numpy()
            self._file.write(bits.data)
            self._shape[0] += len(states)
        except (OSError, PrunebenchError):
            self._failed = True
            self.close()

    def tensor(self) -> Tensor | None:
        """All states, [windows, length, hidden] on the CPU; None if they were lost."""
        if self._file is None:
            return None
        try:
            self._file.seek(0)  # writes what is buffered
            bits = np.fromfile(self._file, dtype=np.uint8)
        except OSError:
            return None
        return torch.from_numpy(bits).view(self._dtype).view(self._shape)

    def close(self) -> None:
        """Free the disk."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def on_input_device(model: Any, windows: Tensor) -> Tensor:
    """``windows`` on the device of the model's embedding."""
    return windows.to(input_device(model))
