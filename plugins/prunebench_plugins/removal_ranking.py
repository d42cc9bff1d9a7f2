"""Rank units by the loss without each of them, and compute no more losses than the choice needs.

A one-shot method removes the first `count` units of the ranking. The vocabulary head of a small
model costs a quarter of an evaluation, so a unit that is not among them gets a lower bound of its
loss instead (`PartialForward.lower_bound`), for a twentieth of the head's cost. The choice is that
of exact losses, because every bound that is left lies above the losses of the chosen units.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from prunebench_plugins.removal_search import (
    KEPT_BYTES,
    PENDING,
    Result,
    Search,
    Unit,
    Variant,
    bytes_of,
    checked,
)

if TYPE_CHECKING:
    import torch

    from prunebench_plugins.removal_search import Bounds

TANGENT_HEADS = 3
"""Runs of the vocabulary head that a lower bound takes in advance."""


class Ranking(NamedTuple):
    """The loss without each unit, or a bound of it."""

    results: list[Result]
    """In the order of the units."""
    bounded: set[Unit]
    """Units whose result is only a lower bound. All other losses are exact."""


def lowest(search: Search, count: int, among: Collection[Unit]) -> Ranking:
    """The losses without each unit that is left, exact for the ``count`` lowest of ``among``.

    The bounds of others in ``among`` are above those losses. Nothing is removed. Raises
    PrunebenchError if a loss is NaN.
    """
    ranking = _Lowest(search, count, among)
    for unit, ends in search.variants_upwards():
        ranking.see(Variant(unit, ends, [-math.inf] * len(ends)))
    return ranking.finish()


class _Lowest:
    """Takes one variant after the other and keeps those that may be among the lowest."""

    def __init__(self, search: Search, count: int, among: Collection[Unit]) -> None:
        self._forward = search.forward
        self._told_apart = search.told_apart
        self._slack = search.slack
        self._count = count
        self._among = set(among)
        # A bound saves a run of the head for each unit outside the choice.
        self._pays = len(search.left) - count > TANGENT_HEADS
        self._bounds: Bounds = []
        self._losses: list[float] = []
        """The exact ones of units in `among`, ascending."""
        self._waiting: list[Variant] = []
        self._found: dict[Unit, float] = {}
        self._bounded: set[Unit] = set()

    def see(self, variant: Variant) -> None:
        """Bound the variant's loss, or keep the variant until a bound can be taken."""
        # Layers outside `among` are often the first ones. The model without one of them is far
        # from the other variants, and a bound is close only near the variant where it is taken.
        if not self._bounds:
            if variant.unit not in self._among and len(self._waiting) < PENDING:
                self._waiting.append(variant)
                return
            self._bounds = [
                self._forward.lower_bound(batch, end) if self._pays else None
                for batch, end in enumerate(variant.ends)
            ]
            self._settle(variant)
            earlier, self._waiting = self._waiting, []
            for other in earlier:
                self._bound(other)
        else:
            self._bound(variant)

    def finish(self) -> Ranking:
        """The results, after the last variant."""
        while self._waiting:
            self._settle_lowest()
        results = [Result(self._found[unit], unit) for unit in sorted(self._found)]
        exact = self._told_apart([one for one in results if one.unit not in self._bounded])
        apart = {one.unit: one for one in exact}
        return Ranking([apart.get(one.unit, one) for one in results], self._bounded)

    @property
    def _limit(self) -> float:
        """A bound above this number rules a unit out."""
        if not self._count:
            return -math.inf
        if len(self._losses) < self._count:
            return math.inf
        return self._losses[self._count - 1] * (1 + self._slack)

    def _bound(self, variant: Variant) -> None:
        for batch, (end, bound) in enumerate(zip(variant.ends, self._bounds, strict=True)):
            variant.known[batch] = self._forward.nll(batch, end) if bound is None else bound(end)
        if all(bound is None for bound in self._bounds):
            self._note_exact(variant)
        elif variant.unit in self._among and not variant.bound > self._limit:
            self._waiting.append(variant)
            while len(self._waiting) > self._room(variant.ends):
                self._settle_lowest()
        else:
            self._note_bound(variant)

    @staticmethod
    def _room(ends: list[torch.Tensor]) -> int:
        """How many variants may wait. If few wait, some losses are computed for nothing."""
        return max(PENDING, KEPT_BYTES // bytes_of(ends))

    def _settle_lowest(self) -> None:
        """Find the loss of the variant with the lowest bound; rule out those that cannot win."""
        waiting = self._waiting
        first = min(range(len(waiting)), key=lambda index: waiting[index].bound)
        self._settle(waiting.pop(first))
        # `not ... >`, so that a NaN is kept: `checked` then names its unit.
        self._waiting = [variant for variant in waiting if not variant.bound > self._limit]
        for variant in waiting:
            if variant.bound > self._limit:
                self._note_bound(variant)

    def _settle(self, variant: Variant) -> None:
        """Compute the exact loss, unless a part of it is too much already."""
        for batch, end in enumerate(variant.ends):
            variant.known[batch] = self._forward.nll(batch, end)
            if variant.bound > self._limit and batch + 1 < len(variant.ends):
                self._note_bound(variant)
                return
        self._note_exact(variant)

    def _note_exact(self, variant: Variant) -> None:
        loss = checked(variant.bound, variant.unit).loss
        self._found[variant.unit] = loss
        if variant.unit in self._among:
            bisect.insort(self._losses, loss)

    def _note_bound(self, variant: Variant) -> None:
        self._found[variant.unit] = checked(variant.bound, variant.unit).loss
        self._bounded.add(variant.unit)
