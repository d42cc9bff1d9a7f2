"""Small tensors that took long to compute from weights, kept in the cache folder across runs."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import torch

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace

LIMIT_BYTES = 64 << 20
"""The size of one cache. The singular values of all linears of a 7B model take about 4 MB."""


class TensorCache:
    """Tensors by the weight that they were computed from, on disk and bounded in size.

    ``name`` says what is kept, such as "singular-values". The key is a hash of the weight's values,
    shape and dtype, so a changed weight never finds what belongs to another. If the folder grows
    beyond ``limit_bytes``, the tensors go that were not used for the longest time. A folder that
    cannot be written or a damaged file is no error: the tensor is computed again.
    """

    def __init__(self, name: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = cache_dir() / name
        self._limit = limit_bytes
        self._used: int | None = None
        """Bytes in the folder; None before the first tensor is stored."""

    def load(self, weight: torch.Tensor) -> torch.Tensor | None:
        """What was stored for this weight, on the CPU; None if nothing is there."""
        path = self._path(weight)
        try:
            found = np.load(path, allow_pickle=False)
            path.touch()  # its time says when it was last used
        except (OSError, ValueError, EOFError):
            return None
        return torch.from_numpy(found)

    def store(self, weight: torch.Tensor, value: torch.Tensor) -> None:
        """Keep ``value``, which was computed from this weight."""
        path = self._path(weight)
        with contextlib.suppress(PrunebenchError, OSError):
            with atomic_replace(path) as aside, aside.open("wb") as file:
                np.save(file, value.detach().cpu().numpy(), allow_pickle=False)
            if self._used is None:
                self._used = sum(size for _, size, _ in self._files())
            else:
                self._used += path.stat().st_size
            if self._used > self._limit:
                self._remove_oldest()

    def _path(self, weight: torch.Tensor) -> Path:
        return self._folder / f"{_sha256(weight)}.npy"

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each file was last used, its bytes, its path."""
        found = []
        for path in self._folder.glob("*.npy"):
            with contextlib.suppress(OSError):  # another process may remove it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found

    def _remove_oldest(self) -> None:
        """Remove files until half of the limit is free, so that this is not done every time."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used <= self._limit // 2:
                break
            path.unlink(missing_ok=True)
            used -= size
        self._used = used


def _sha256(weight: torch.Tensor) -> str:
    """A hash of the values, the shape and the dtype of a tensor on any device."""
    values = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
