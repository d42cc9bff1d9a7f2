"""A folder of tensors in the cache: found by a text, bounded in size, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace

SPARE_BYTES = 1 << 30
"""What a tensor leaves free on the disk."""

_SUM_BYTES = 4
_ABANDONED_S = 3600.0
# Types that numpy does not have, and those of the same size that hold their bits.
_BITS = {torch.bfloat16: torch.int16}


class TensorFolder:
    """Tensors by a text that says what they are, on disk and at most ``limit_bytes`` together.

    ``name`` is the folder's name in the cache. If it grows beyond the limit, the tensors go that
    were not used for the longest time. A tensor appears under its name only when all of it is
    there, and a checksum finds what a disk damaged: a writer may be killed at any time. A folder
    that cannot be written, a full disk or a damaged file is no error, because whoever asks for a
    tensor can compute it again.
    """

    def __init__(self, name: str, *, limit_bytes: int) -> None:
        self._folder = cache_dir() / name
        self._limit = limit_bytes
        self._used: int | None = None
        """Bytes in the folder; None before the first tensor is stored."""

    def load(self, key: str) -> torch.Tensor | None:
        """What was stored as ``key``, on the CPU; None if nothing is there."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                dtype, total = file.readline().decode().strip(), file.read()
            path.touch()  # its time says when it was last used
        except (OSError, ValueError, EOFError):
            return None
        if total != _checksum(found):
            return None
        value = torch.from_numpy(found)
        return value.view(getattr(torch, dtype)) if dtype else value

    def store(self, key: str, value: torch.Tensor) -> None:
        """Keep ``value`` as ``key``; it is not kept if it is larger than half of the folder."""
        if value.nbytes > self._limit // 2:
            return
        bits = _BITS.get(value.dtype)
        array = (value if bits is None else value.view(bits)).detach().cpu().contiguous().numpy()
        dtype = "" if bits is None else str(value.dtype).removeprefix("torch.")
        path = self._path(key)
        with contextlib.suppress(PrunebenchError, OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._folder).free - array.nbytes < SPARE_BYTES:
                return
            with atomic_replace(path) as aside, aside.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.write(f"{dtype}\n".encode() + _checksum(array))
            if self._used is None:
                self._remove_abandoned()
                self._used = sum(size for _, size, _ in self._files())
            else:
                self._used += path.stat().st_size
            if self._used > self._limit:
                self._remove_oldest()

    def load_json(self, key: str) -> Any:
        """What `store_json` kept as ``key``; None if nothing is there."""
        found = self.load(key)
        return None if found is None else json.loads(found.numpy().tobytes())

    def store_json(self, key: str, value: Any) -> None:
        """Keep a value of JSON as ``key``, as the bytes of its text."""
        self.store(key, torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8))

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"

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

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left; nobody writes one tensor for an hour."""
        for path in self._folder.glob(".tmp-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """A hash of the values, the shape and the dtype of a tensor on any device."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(array: np.ndarray) -> bytes:
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return zlib.crc32(bits.data).to_bytes(_SUM_BYTES, "big")
