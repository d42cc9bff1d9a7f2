"""What the cells of one dense model would find out about its weights one after the other.

Before a model is pruned its weights and logits are checked for NaN and its zeros are counted. The
first cell that does so leaves the counts in the cache folder, which says to the next that the model
was found sound, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property

from prunebench.measure.weight_counts import LayerCount
from prunebench.model.tensor_folder import TensorFolder

FOLDER = "dense-counts"
LIMIT_BYTES = 64 << 20
FORM = 1
"""Counts the ways of writing what is kept. Add one when they change: old files are then unused."""


class DenseCounts:
    """The counts of a dense model's layers, if a cell has checked the model before.

    ``identify`` gives a text that identifies the model and how this process runs it, see
    `dense_identity`; without it nothing is kept.
    """

    def __init__(self, identify: Callable[[], str] | None) -> None:
        self._identify = identify

    def load(self) -> list[LayerCount] | None:
        """One for each layer, without patterns; None if nobody has counted them."""
        kept = None if self._key is None else self._folder.load_json(self._key)
        if kept is None:
            return None
        return [
            LayerCount(
                shapes={name: (rows, columns) for name, (rows, columns, _) in linears.items()},
                zeros={name: zeros for name, (_, _, zeros) in linears.items()},
                groups={},
                violations={},
                experts=experts,
            )
            for linears, experts in kept
        ]

    def store(self, counts: Sequence[LayerCount]) -> None:
        """Keep the counts of a model whose weights and logits are finite."""
        if self._key is None:
            return
        layers = [
            (
                {name: (*each.shapes[name], each.zeros[name]) for name in each.shapes},
                each.experts,
            )
            for each in counts
        ]
        self._folder.store_json(self._key, layers)

    @cached_property
    def _key(self) -> str | None:
        return None if self._identify is None else json.dumps([FORM, self._identify()])

    @cached_property
    def _folder(self) -> TensorFolder:
        return TensorFolder(FOLDER, limit_bytes=LIMIT_BYTES)
