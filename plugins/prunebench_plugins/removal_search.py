"""Greedy removal by loss, with less work than the plain loop and the same choices.

The units are attentions and MLPs (BlockPruner), or whole layers (SLEB, Shortened LLaMA). A step
compares all variants of the model that lack one more unit, by their loss on the calibration
windows. The plain loop runs each of them in full. `Search.step` saves work in five ways, all exact:

- Variants agree up to the unit in which they differ, so each starts from the states before its
  unit, and these states move on from unit to unit.
- The loss is a sum of non-negative terms: a variant is given up as soon as a part of the sum
  exceeds the best loss so far.
- For most variants a lower bound is enough (`PartialForward.lower_bound`), which takes a twentieth
  of the vocabulary head's cost. The exact loss is computed for the variants with the lowest bounds,
  until the next bound exceeds the best loss.
- The runner-up of the last step comes first, so there is a low loss to beat from the start.
- Variants that follow each other run together through the layers above their units. This changes
  how losses are rounded, so losses that are equal but for rounding are computed again, one by one
  (`Search.told_apart`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench import PrunebenchError, anatomy

if TYPE_CHECKING:
    from prunebench import Context

    Bounds = list[Callable[[torch.Tensor], float] | None]
    """`PartialForward.lower_bound` of each batch."""

    Start = tuple["Unit", list[torch.Tensor]]
    """A unit, and the states that it reads, by batch."""

PENDING = 4
"""Variants whose last states are kept until we know whose exact loss is needed."""
# Deep layers contribute little, so a low loss to beat is likely to be there. Any other guess gives
# the same result.
FIRST_GUESS = 0.67
"""Where the first step begins to look, as a share of all units from the bottom."""
LARGEST_LOGARITHM = 700.0
"""e^710 overflows a float."""

KEPT_BYTES = 1 << 28
"""The size of states that are kept because they may be needed again, or for variants that run
together."""

ROUNDING = 1e-6
"""By which share a float32 loss may change with the number of variants that run together.

A hundred tokens of SmolLM2: 5e-8.
"""

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
        self._at_once = min(
            self.forward.variants_at_once, max(1, KEPT_BYTES // bytes_of(self.forward.start()))
        )
        self._alone: dict[Unit, Result] = {}
        """This step's variants that ran alone, because their losses were almost equal."""
        # About each unit's loss when it was last looked at. Before that any guess will do: two
        # thirds up the model is a good one.
        self._expected = {unit: abs(i / len(units) - FIRST_GUESS) for i, unit in enumerate(units)}

    def step(self) -> Result:
        """Remove the unit whose absence gives the lowest loss, and return it."""
        guess = min(self.left, key=self._expected.__getitem__)
        split, top = self._reads(guess), max(map(self._reads, self.left)) + 1
        self._alone.clear()
        # From the guess to the top, then from the bottom to the guess, so that the guess comes
        # first. The states below the guess are kept for that, as far as they fit.
        below: list[list[torch.Tensor]] = []
        upper = self._starts(split, top, guess, below)
        best, bounds = self._measure(*next(upper))
        self._count()
        pending: list[Variant] = []
        for starts in (upper, self._starts(0, split, guess, below)):
            for group in self._groups(starts):
                for variant in self._bounded(group, bounds, best.loss):
                    # The variant before it may have lowered the best loss.
                    if not variant.bound > best.loss * (1 + self.slack):
                        pending.append(variant)
                    if len(pending) > PENDING:
                        best = self._settle(pending, bounds, best)
                    self._count()
        while pending:
            best = self._settle(pending, bounds, best)
        return self.remove(best)

    def variants_upwards(self) -> Iterator[tuple[Unit, list[torch.Tensor]]]:
        """Each unit that is left, from the bottom up, and the last layer's output without it.

        By batch. Each variant starts from the states before its unit.
        """
        top = max(map(self._reads, self.left), default=-1) + 1
        for group in self._groups(self._starts(0, top, None, [])):
            batches = range(len(group[0][1]))
            by_batch = [self._ends(group, batch) for batch in batches]
            for (unit, _), *ends in zip(group, *by_batch, strict=True):
                yield unit, ends
                self._count()

    def told_apart(self, results: Sequence[Result]) -> list[Result]:
        """The results, where losses that only rounding sets apart come from variants run alone.

        How a loss is rounded depends on how many variants ran together. Alone, equal variants
        have equal losses.
        """
        if self._at_once == 1:
            return list(results)
        near: set[Unit] = set()
        for low, high in pairwise(sorted(results)):
            if high.loss - low.loss <= ROUNDING * low.loss:
                near |= {low.unit, high.unit}
        return [self._run_alone(each.unit) if each.unit in near else each for each in results]

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
        found = self._in_full(unit, states, model_dtype=True)
        self._count()
        return found

    def _run_alone(self, unit: Unit) -> Result:
        if unit not in self._alone:
            self._alone[unit] = self._in_full(unit, self.forward.start(), model_dtype=False)
        return self._alone[unit]

    def _in_full(self, unit: Unit, states: list[torch.Tensor], *, model_dtype: bool) -> Result:
        """The loss without this unit, from the inputs of layer 0."""
        nlls = []
        for batch, state in enumerate(states):
            end = state
            for layer in range(self.forward.layers):
                gone = self._gone[layer] | (set(unit.kinds) if layer == unit.layer else set())
                end = self._run(layer, batch, end, gone)
            nlls.append(self.forward.nll(batch, end, model_dtype=model_dtype))
        return checked(math.fsum(nlls), unit)

    def _measure(self, unit: Unit, states: list[torch.Tensor]) -> tuple[Result, Bounds]:
        """The loss without this unit, and bounds taken there; ``states`` are those it reads."""
        bounds, nlls = [], []
        for batch in range(len(states)):
            [end] = self._ends([(unit, states)], batch)
            nlls.append(self.forward.nll(batch, end))
            bounds.append(self.forward.lower_bound(batch, end))
        self._expected[unit] = math.fsum(nlls)
        return checked(self._expected[unit], unit), bounds

    def _bounded(self, group: Sequence[Start], bounds: Bounds, limit: float) -> list[Variant]:
        """The variants without each unit; those whose loss exceeds the limit are not complete."""
        limit *= 1 + self.slack
        variants = {unit: Variant(unit, [], []) for unit, _ in group}
        going = group
        for batch, bound in enumerate(bounds):
            for (unit, _), end in zip(going, self._ends(going, batch), strict=True):
                variants[unit].ends.append(end)
                variants[unit].known.append(
                    self.forward.nll(batch, end) if bound is None else bound(end)
                )
            # `not ... >`, so that a NaN is kept: `checked` then names its unit.
            going = [start for start in going if not variants[start[0]].bound > limit]
            if not going:
                break
        for unit, variant in variants.items():
            self._expected[unit] = variant.bound * len(bounds) / len(variant.known)
        return list(variants.values())

    def _settle(self, pending: list[Variant], bounds: Bounds, best: Result) -> Result:
        """Compute the loss of the variant with the lowest bound; drop those that cannot win."""
        variant = pending.pop(min(range(len(pending)), key=lambda index: pending[index].bound))
        for batch, (end, bound) in enumerate(zip(variant.ends, bounds, strict=True)):
            if bound is not None:
                variant.known[batch] = self.forward.nll(batch, end)
            if variant.bound > best.loss * (1 + self.slack):
                break
        else:
            best = min(self.told_apart([best, checked(variant.bound, variant.unit)]))
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

    def _starts(
        self, first: int, end: int, guess: Unit | None, below: list[list[torch.Tensor]]
    ) -> Iterator[Start]:
        """The units that read the states from ``first`` to ``end``, upwards; the guess before all.

        ``below`` keeps states below ``first``; for a ``first`` of 0, it has those kept before.
        """
        if not end:
            return
        states = below[0] if below else self.forward.start()
        for index in range(end):
            if index < first and (index + 1) * bytes_of(states) <= KEPT_BYTES:
                below.append(states)
            if index >= first:
                here = [unit for unit in self.left if self._reads(unit) == index]
                for unit in sorted(here, key=lambda unit: unit != guess):
                    yield unit, states
            if index + 1 < end:
                again = not first and index + 1 < len(below)
                states = below[index + 1] if again else self._advance(index, states)

    def _groups(self, starts: Iterable[Start]) -> Iterator[list[Start]]:
        """As many as run together at a time."""
        rest = iter(starts)
        while group := list(islice(rest, self._at_once)):
            yield group

    def _ends(self, group: Sequence[Start], batch: int) -> list[torch.Tensor]:
        """The last layer's output for one batch without each of the units, which go upwards.

        Above its unit a variant has the same layers as the others, so it runs together with them.
        """
        running: list[torch.Tensor] = []  # at most one, [variants * windows, length, hidden]
        for layer in range(group[0][0].layer, self.forward.layers):
            running = [self._run(layer, batch, each, self._gone[layer]) for each in running]
            running += [
                self._past(unit, batch, states[batch])
                for unit, states in group
                if unit.layer == layer
            ]
            if len(running) > 1:
                running = [torch.cat(running)]
        if len(group) == 1:
            return running
        # Copies, so that no variant that is kept keeps the others.
        return [end.clone() for end in torch.split(running[0], len(group[0][1][batch]))]

    def _past(self, unit: Unit, batch: int, state: torch.Tensor) -> torch.Tensor:
        """The output of the unit's layer without it; ``state``: what the unit reads."""
        gone = self._gone[unit.layer] | set(unit.kinds)
        if unit.kinds == ("mlp",) and self._halves:
            gone = gone | {"attention"}  # its output is in the state already
        return self._run(unit.layer, batch, state, gone)

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
