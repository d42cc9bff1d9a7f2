"""Greedy removal by loss, with less work than the plain loop and the same choices.

The units are attentions and MLPs (BlockPruner), or whole layers (SLEB, Shortened LLaMA). A step
compares all variants of the model that lack one more unit, by their loss on the calibration
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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench import PrunebenchError, anatomy

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
LARGEST_LOGARITHM = 700.0
"""e^710 overflows a float."""

KEPT_BYTES = 1 << 28
"""The size of states that are kept because they may be needed again."""

WHOLE: tuple[Any, ...] = ("attention", "mlp")
"""The kinds of a unit that is a whole layer."""


class Unit(NamedTuple):
    """What a step can remove: a part of one layer or all of it.

    Units sort as ties are broken: attentions before MLPs, then lower layers first.
    """

    kinds: tuple[Any, ...]
    """("attention",), ("mlp",) or `WHOLE`."""
    layer: int

    def __str__(self) -> str:
        return f"layer {self.layer}" + ("" if self.kinds == WHOLE else f"'s {self.kinds[0]}")


class Result(NamedTuple):
    """The loss without a unit. The lowest is removed; of equal ones the unit that sorts first."""

    loss: float
    unit: Unit


class Variant(NamedTuple):
    """The model without one more unit."""

    unit: Unit
    ends: list[torch.Tensor]
    """The last layer's output, by batch."""
    known: list[float]
    """Each batch's loss, or a bound of it."""

    @property
    def bound(self) -> float:
        return math.fsum(self.known)


class Search:
    """Which units are left and which are removed; `step` removes one more. The model is unchanged.

    ``units``: parts of layers, or whole layers only. ``looked_at`` is called with the number of
    variants compared so far.
    """

    def __init__(
        self, model: Any, context: Context, units: Sequence[Unit], looked_at: Callable[[int], None]
    ) -> None:
        self.forward = context.partial_forward(model)
        self.left = list(units)
        self._gone: dict[int, set[Any]] = {layer: set() for layer in range(self.forward.layers)}
        self.variants = 0
        """How many were compared so far."""
        self._looked_at = looked_at
        # A bound may exceed the loss by rounding: at most by half a unit in the last place.
        self.slack = max(1e-5, torch.finfo(anatomy(model).head.weight.dtype).eps / 2)
        """The share by which rounding may raise a bound above the loss."""
        # States in the middle of a layer are needed if an MLP can go alone, unless both parts of a
        # layer read the layer's input.
        self._halves = not self.forward.parallel and any(unit.kinds != WHOLE for unit in units)
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
        pending: list[Variant] = []
        below: list[list[torch.Tensor]] = []
        # From the guess to the top, then from the bottom to the guess, so that the guess comes
        # first. The states below the guess are kept for that, as far as they fit.
        for first, end in ((self._reads(guess), max(reads) + 1), (0, self._reads(guess))):
            states = (below[0] if below else forward.start()) if end else []
            for index in range(end):
                if index < first and (index + 1) * bytes_of(states) <= KEPT_BYTES:
                    below.append(states)
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
                    again = not first and index + 1 < len(below)
                    states = below[index + 1] if again else self._advance(index, states)
        assert best is not None, "a step needs a unit"
        while pending:
            best = self._settle(pending, bounds, best)
        return self.remove(best)

    def variants_upwards(self) -> Iterator[tuple[Unit, list[torch.Tensor]]]:
        """Each unit that is left, from the bottom up, and the last layer's output without it.

        By batch. Each variant starts from the states before its unit.
        """
        states = self.forward.start()
        index = 0
        # The same states serve all units that read them, and move on to the next ones.
        for unit in sorted(self.left, key=self._reads):
            while index < self._reads(unit):
                states = self._advance(index, states)
                index += 1
            yield unit, [self._end(unit, batch, state) for batch, state in enumerate(states)]
            self._count()

    def every_as_released(self) -> list[Result]:
        """The loss without each unit, with every variant run in full, softmax in the model's dtype.

        In the order in which ties are broken. Removes none.
        """
        states = self.forward.start()
        return [self._released(unit, states) for unit in sorted(self.left)]

    def remove(self, best: Result) -> Result:
        """Remove this unit for good. Raises PrunebenchError if the loss without it is infinite."""
        if math.isinf(best.loss):
            raise PrunebenchError(
                "the loss is infinite whichever unit is removed", hint="use float32 or bfloat16"
            )
        self.left.remove(best.unit)
        self._gone[best.unit.layer].update(best.unit.kinds)
        return best

    def perplexity(self, result: Result) -> float:
        """Of the calibration text without the unit; at most e^700."""
        return math.exp(min(result.loss / self.forward.targets, LARGEST_LOGARITHM))

    def cost(self) -> dict[str, float]:
        """What was evaluated, for the record, in units of one evaluation of the whole model."""
        return {
            "naive_evaluations": self.variants,
            "decoder_evaluations": round(self.forward.decoder_passes, 3),
            "head_evaluations": round(self.forward.head_passes, 3),
        }

    def _count(self) -> None:
        self.variants += 1
        self._looked_at(self.variants)

    def _released(self, unit: Unit, states: list[torch.Tensor]) -> Result:
        nlls = [
            self.forward.nll(batch, self._end(unit, batch, state, whole=True), model_dtype=True)
            for batch, state in enumerate(states)
        ]
        self._count()
        return checked(math.fsum(nlls), unit)

    def _measure(self, unit: Unit, states: list[torch.Tensor]) -> tuple[Result, Bounds]:
        """The loss without this unit, and bounds taken there; ``states`` are those it reads."""
        bounds, nlls = [], []
        for batch, state in enumerate(states):
            end = self._end(unit, batch, state)
            nlls.append(self.forward.nll(batch, end))
            bounds.append(self.forward.lower_bound(batch, end))
        self._expected[unit] = math.fsum(nlls)
        return checked(self._expected[unit], unit), bounds

    def _bounded(
        self, unit: Unit, states: list[torch.Tensor], bounds: Bounds, limit: float
    ) -> list[Variant]:
        """The variant without this unit, or nothing if its loss exceeds the limit."""
        limit *= 1 + self.slack
        ends, known = [], []
        for batch, (state, bound) in enumerate(zip(states, bounds, strict=True)):
            ends.append(self._end(unit, batch, state))
            known.append(self.forward.nll(batch, ends[-1]) if bound is None else bound(ends[-1]))
            if math.fsum(known) > limit:
                break
        self._expected[unit] = math.fsum(known) * len(states) / len(known)
        variant = Variant(unit, ends, known)
        return [] if variant.bound > limit else [variant]

    def _settle(self, pending: list[Variant], bounds: Bounds, best: Result) -> Result:
        """Compute the loss of the variant with the lowest bound; drop those that cannot win."""
        variant = pending.pop(min(range(len(pending)), key=lambda index: pending[index].bound))
        for batch, (end, bound) in enumerate(zip(variant.ends, bounds, strict=True)):
            if bound is not None:
                variant.known[batch] = self.forward.nll(batch, end)
            if variant.bound > best.loss * (1 + self.slack):
                break
        else:
            best = min(best, checked(variant.bound, variant.unit))
        # `not ... >`, so that a NaN is kept: `checked` then names its unit.
        limit = best.loss * (1 + self.slack)
        pending[:] = [other for other in pending if not other.bound > limit]
        return best

    def _reads(self, unit: Unit) -> int:
        """Index of the states that the unit reads: see `_halves`."""
        return 2 * unit.layer + (unit.kinds == ("mlp",)) if self._halves else unit.layer

    def _advance(self, index: int, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """The states that follow those with this index."""
        layer, second = divmod(index, 2) if self._halves else (index, 0)
        done = {"attention" if second else "mlp"} if self._halves else set()
        gone = self._gone[layer] | done
        return [self._run(layer, batch, state, gone) for batch, state in enumerate(states)]

    def _end(
        self, unit: Unit, batch: int, state: torch.Tensor, *, whole: bool = False
    ) -> torch.Tensor:
        """The last layer's output without this unit.

        ``state``: what the unit reads, or (``whole``) layer 0's input.
        """
        first = 0 if whole else unit.layer
        for layer in range(first, self.forward.layers):
            gone = self._gone[layer] | (set(unit.kinds) if layer == unit.layer else set())
            if layer == unit.layer and unit.kinds == ("mlp",) and self._halves and not whole:
                gone = gone | {"attention"}  # its output is in the state already
            state = self._run(layer, batch, state, gone)
        return state

    def _run(self, layer: int, batch: int, state: torch.Tensor, gone: set[Any]) -> torch.Tensor:
        # A whole layer can be left out of every model, also of those whose parts cannot go alone.
        return state if gone >= set(WHOLE) else self.forward.run(layer, batch, state, gone)


def bytes_of(states: Sequence[torch.Tensor]) -> int:
    """The memory of the states of all batches."""
    return sum(state.numel() * state.element_size() for state in states)


def checked(loss: float, unit: Unit) -> Result:
    """The loss as a result. Raises PrunebenchError if it is NaN."""
    if math.isnan(loss):
        raise PrunebenchError(
            f"the loss without {unit} is NaN",
            hint="use float32, or look for a damaged checkpoint",
        )
    return Result(loss, unit)
