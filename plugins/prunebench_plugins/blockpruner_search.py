"""BlockPruner's greedy search, with less work than the plain loop and the same choices.

A step compares all variants of the model that lack one more unit, by their loss on the calibration
windows. The plain loop runs each of them in full. `Search.step` saves work in four ways, all exact:

- Variants agree up to the unit in which they differ, so each starts from the states before its
  unit, and these states move on from unit to unit.
- The loss is a sum of non-negative terms: a variant is given up as soon as a part of the sum
  exceeds the best loss so far.
- For most variants a lower bound is enough (`PartialForward.lower_bound`), which takes a twentieth
  of the vocabulary head's cost. The exact loss is computed for the variants with the lowest bounds,
  until the next bound exceeds the best loss.
- The runner-up of the last step comes first, so there is a low loss to beat from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench import Block, PrunebenchError

if TYPE_CHECKING:
    from prunebench import Context

    Bounds = list[Callable[[torch.Tensor], float] | None]
    """`PartialForward.lower_bound` of each batch."""

PENDING = 4
"""Variants whose last states are kept until we know whose exact loss is needed."""
# Deep layers contribute little, so a low loss to beat is likely to be there. Any other guess gives
# the same result.
FIRST_GUESS = 0.67
"""Where the first step begins to look, as a share of all units from the bottom."""


class Result(NamedTuple):
    """The loss without a unit. The lowest is removed; ties: attentions, then lower layers."""

    loss: float
    kind: str
    layer: int
    unit: Block


class _Variant(NamedTuple):
    """The model without one more unit."""

    unit: Block
    ends: list[torch.Tensor]
    """The last layer's output, by batch."""
    known: list[float]
    """Each batch's loss, or a bound of it."""

    @property
    def bound(self) -> float:
        return math.fsum(self.known)


class Search:
    """Which units are left and which are removed; `step` removes one more. The model is unchanged.

    ``slack``: the share by which rounding may raise a bound above the loss. ``looked_at`` is called
    with the number of variants compared so far.
    """

    def __init__(
        self,
        model: Any,
        context: Context,
        units: list[Block],
        slack: float,
        looked_at: Callable[[int], None],
    ) -> None:
        self.forward = context.partial_forward(model)
        self.left = list(units)
        self._gone: dict[int, set[Any]] = {layer: set() for layer in range(self.forward.layers)}
        self.variants = 0
        """How many were compared so far."""
        self._looked_at = looked_at
        self._factor = 1 + slack
        # About each unit's loss when it was last looked at. Before that any guess will do: two
        # thirds up the model is a good one.
        self._expected = {unit: abs(i / len(units) - FIRST_GUESS) for i, unit in enumerate(units)}

    def step(self) -> Result:
        """Remove the unit whose absence gives the lowest loss, and return it."""
        forward = self.forward
        guess = min(self.left, key=self._expected.__getitem__)
        reads = [self._reads(unit) for unit in self.left]
        best: Result | None = None
        bounds: Bounds = []
        pending: list[_Variant] = []
        # From the guess to the top, then from the bottom to the guess, so that the guess comes
        # first.
        for first, end in ((self._reads(guess), max(reads) + 1), (0, self._reads(guess))):
            states = forward.start() if end else []
            for index in range(end):
                here = [
                    unit
                    for unit, its in zip(self.left, reads, strict=True)
                    if its == index >= first
                ]
                for unit in sorted(here, key=guess.__ne__):  # the guess, then the others
                    if best is None:
                        best, bounds = self._measure(unit, states)
                    else:
                        pending += self._bounded(unit, states, bounds, best.loss)
                        if len(pending) > PENDING:
                            best = self._settle(pending, bounds, best)
                    self._count()
                if index + 1 < end:
                    states = [self._next(index, batch, state) for batch, state in enumerate(states)]
        assert best is not None, "a step needs a unit"
        while pending:
            best = self._settle(pending, bounds, best)
        return self._commit(best)

    def step_as_released(self) -> Result:
        """The same, with every variant in full."""
        best = None
        states = self.forward.start()
        for unit in sorted(self.left, key=lambda unit: (unit.kind, unit.layer)):
            nlls = [
                self.forward.nll(batch, self._end(unit, batch, state, whole=True), model_dtype=True)
                for batch, state in enumerate(states)
            ]
            found = _result(math.fsum(nlls), unit)
            best = found if best is None or found.loss < best.loss else best
            self._count()
        assert best is not None, "a step needs a unit"
        return self._commit(best)

    def _count(self) -> None:
        self.variants += 1
        self._looked_at(self.variants)

    def _commit(self, best: Result) -> Result:
        if math.isinf(best.loss):
            raise PrunebenchError(
                "the loss is infinite whichever unit is removed", hint="use float32 or bfloat16"
            )
        self.left.remove(best.unit)
        self._gone[best.layer].add(best.kind)
        return best

    def _measure(self, unit: Block, states: list[torch.Tensor]) -> tuple[Result, Bounds]:
        """The loss without this unit, and bounds taken there; ``states`` are those it reads."""
        bounds, nlls = [], []
        for batch, state in enumerate(states):
            end = self._end(unit, batch, state)
            nlls.append(self.forward.nll(batch, end))
            bounds.append(self.forward.lower_bound(batch, end))
        self._expected[unit] = math.fsum(nlls)
        return _result(self._expected[unit], unit), bounds

    def _bounded(
        self, unit: Block, states: list[torch.Tensor], bounds: Bounds, limit: float
    ) -> list[_Variant]:
        """The variant without this unit, or nothing if its loss exceeds the limit."""
        ends, known = [], []
        for batch, (state, bound) in enumerate(zip(states, bounds, strict=True)):
            ends.append(self._end(unit, batch, state))
            known.append(self.forward.nll(batch, ends[-1]) if bound is None else bound(ends[-1]))
            if math.fsum(known) > limit * self._factor:
                break
        self._expected[unit] = math.fsum(known) * len(states) / len(known)
        variant = _Variant(unit, ends, known)
        return [] if variant.bound > limit * self._factor else [variant]

    def _settle(self, pending: list[_Variant], bounds: Bounds, best: Result) -> Result:
        """Compute the loss of the variant with the lowest bound; drop those that cannot win."""
        variant = pending.pop(min(range(len(pending)), key=lambda index: pending[index].bound))
        for batch, (end, bound) in enumerate(zip(variant.ends, bounds, strict=True)):
            if bound is not None:
                variant.known[batch] = self.forward.nll(batch, end)
            if variant.bound > best.loss * self._factor:
                break
        else:
            best = min(best, _result(variant.bound, variant.unit))
        # `not ... >`, so that a NaN is kept: `_result` then names its unit.
        pending[:] = [other for other in pending if not other.bound > best.loss * self._factor]
        return best

    def _reads(self, unit: Block) -> int:
        """Index of the states that the unit reads.

        There is one before each unit; or one before each layer, if both units of a layer read it.
        """
        return unit.layer if self.forward.parallel else 2 * unit.layer + (unit.kind == "mlp")

    def _next(self, index: int, batch: int, state: torch.Tensor) -> torch.Tensor:
        """The states that follow those with this index."""
        if self.forward.parallel:
            return self.forward.run(index, batch, state, self._gone[index])
        layer, second = divmod(index, 2)
        return self.forward.run(
            layer, batch, state, self._gone[layer] | {"attention" if second else "mlp"}
        )

    def _end(
        self, unit: Block, batch: int, state: torch.Tensor, *, whole: bool = False
    ) -> torch.Tensor:
        """The last layer's output without this unit.

        ``state``: what the unit reads, or (``whole``) layer 0's input.
        """
        first = 0 if whole else unit.layer
        for layer in range(first, self.forward.layers):
            gone = self._gone[layer] | ({unit.kind} if layer == unit.layer else set())
            if (
                layer == unit.layer
                and unit.kind == "mlp"
                and not whole
                and not self.forward.parallel
            ):
                gone = gone | {"attention"}  # its output is in the state already
            state = self.forward.run(layer, batch, state, gone)
        return state


def _result(loss: float, unit: Block) -> Result:
    """Raises PrunebenchError if the loss is NaN."""
    if math.isnan(loss):
        raise PrunebenchError(
            f"the loss without layer {unit.layer}'s {unit.kind} is NaN",
            hint="use float32, or look for a damaged checkpoint",
        )
    return Result(loss, unit.kind, unit.layer, unit)
