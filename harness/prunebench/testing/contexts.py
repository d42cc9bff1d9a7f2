"""A context like the one that a method gets, to try its tools on a small model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunebench.model.anatomy import anatomy
from prunebench.plugin.api.context import Context
from prunebench.testing.models import tiny_calibration


@dataclass(frozen=True)
class _Whole:
    """Lends copies of a dense model that is small enough to be kept."""

    model: Any

    @contextmanager
    def lent(self, layers: Collection[int], device: str) -> Iterator[Any]:
        del layers
        with self.whole(device) as model:
            yield model

    @contextmanager
    def whole(self, device: str) -> Iterator[Any]:
        yield copy.deepcopy(self.model).to(device)


def tiny_context(model: Any, seed: int = 0) -> Context:
    """The context of a new cell for ``model``, with `tiny_calibration` as its windows."""
    layers = list(range(len(anatomy(model).layers)))
    return Context(tiny_calibration(), seed, layers, dense_source=_Whole(copy.deepcopy(model)))
