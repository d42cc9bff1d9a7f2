"""Small tensors that took long to compute from weights, kept in the cache folder across runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prunebench.model.tensor_folder import TensorFolder, tensor_sha256

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
        self._kept = TensorFolder(name, limit_bytes=limit_bytes)

    def computed(
        self, weight: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What was stored for this weight; if nothing is there, ``compute(weight)``, then stored."""
        # Hashed once: a hash takes a twentieth of the time of a decomposition.
        key = tensor_sha256(weight)
        found = self._kept.load(key)
        if found is None:
            found = compute(weight)
            self._kept.store(key, found)
        return found

    def load(self, weight: torch.Tensor) -> torch.Tensor | None:
        """What was stored for this weight, on the CPU; None if nothing is there."""
        return self._kept.load(tensor_sha256(weight))

    def store(self, weight: torch.Tensor, value: torch.Tensor) -> None:
        """Keep ``value``, which was computed from this weight."""
        self._kept.store(tensor_sha256(weight), value)
