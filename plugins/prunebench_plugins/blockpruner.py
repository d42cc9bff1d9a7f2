"""BlockPruner: remove attentions and MLPs one by one, each time the one that is missed least (arXiv:2406.10594).

A step compares all variants of the model that lack one more unit, by their perplexity on the calibration windows. The plain
loop runs each of them in full. `mode=clean` makes the same choices with less work, every saving being exact:

- Variants agree up to the unit where they differ, so each starts from the state before it, which moves on unit by unit.
- The loss is a sum of non-negative terms: a variant is given up as soon as a part of it exceeds the best loss so far.
- For most variants a lower bound does (`Stream.bound`), at a twentieth of the vocabulary head's cost. The exact loss is
  computed for those with the lowest bounds, until the next bound exceeds the best loss.
- The runner-up of the last step comes first, so that there is a low loss to beat from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import model_validator

import prunebench
from prunebench import Block, Field, Method, PrunebenchError, Reference, anatomy, hookimpl

if TYPE_CHECKING:
    from prunebench import Anatomy, Context

PENDING = 4
"""Variants whose last states are kept until it is known whose exact loss is needed."""
KINDS = {"mix": ("attention", "mlp"), "mha": ("attention",), "mlp": ("mlp",)}
RATIO = 0.2
_Tangents = list[Any]
"""What `stream.tangent` gives for each batch; None if the vocabulary is small."""


class BlockPruner(Method):
    """Remove the units whose loss raises the calibration perplexity least, one after the other (algorithm 1).

    `mode=reference` is the released search: every variant in full, softmax in the model's dtype, so that in bfloat16
    near-ties fall by rounding as they do there. Both modes take the lower layer, and attentions before MLPs, among equals.
    """

    name = "blockpruner"
    reference = Reference(
        title="BlockPruner: Fine-grained Pruning for Large Language Models",
        arxiv="2406.10594",
        code="https://github.com/MrGGLS/BlockPruner",
    )
    structure: ClassVar = frozenset({"blocks"})
    needs_calibration = True

    class Options(prunebench.Options):
        blocks: Literal["mix", "mha", "mlp"] = Field(
            "mix", description="which units may go: attentions, MLPs or both"
        )
        count: int | None = Field(None, ge=0, description="number of units to remove")
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description=f"share of all parameters to remove, at least; {RATIO} if neither is given",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="quick and exact, or as released"
        )

        @model_validator(mode="after")
        def _one_of_them(self) -> Self:
            if self.ratio is not None and self.count is not None:
                raise ValueError("give `ratio` or `count`, not both")
            return self

    def prune(self, model: Any, context: Context) -> None:
        parts = anatomy(model)
        units = [block for block in parts.blocks if block.kind in KINDS[self.options.blocks]]
        budget = _Budget(parts, units, self.options)
        slack = max(1e-5, torch.finfo(parts.head.weight.dtype).eps / 2)
        planned = sum(range(len(units) - budget.steps() + 1, len(units) + 1))
        search = _Search(
            model, context, units, slack, lambda done: context.progress(done, max(done, planned))
        )
        stream = search.stream
        step = search.step if self.options.mode == "clean" else search.step_as_released
        gone: list[Block] = []
        losses: list[float] = []
        while not budget.reached(gone):
            best = step()
            gone.append(best.unit)
            losses.append(best.loss / stream.targets)
        context.notes |= {
            "removed_in_order": [f"{context.kept_layers[unit.layer]}.{unit.kind}" for unit in gone],
            "perplexity_after_each": [
                math.exp(min(loss, 700)) for loss in losses
            ],  # e^710 is no float
            "naive_evaluations": search.variants,
            "decoder_evaluations": round(stream.decoder_passes, 3),
            "head_evaluations": round(stream.head_passes, 3),
        }
        context.remove_blocks(model, gone)


class _Budget:
    """How much has to go. Raises PrunebenchError for more than there is."""

    def __init__(self, parts: Anatomy, units: list[Block], options: Any) -> None:
        self._parts = parts
        self._units = units
        self._total: int = sum(parameter.numel() for parameter in parts.model.parameters())
        self._count: int | None = options.count
        self._ratio: float = RATIO if options.ratio is None else options.ratio
        most = len(units) - (len(units) == len(parts.blocks))  # one block of the model stays
        if self._count is not None and self._count > most:
            raise PrunebenchError(
                f"{self._count} units cannot go: of {len(units)} ({options.blocks}) at most {most} can",
                hint=f"set `count` to {most} or less",
            )
        if self._count is None:
            self._most = most
            self._check(
                sorted(units, key=lambda unit: self._parameters([unit]))[len(units) - most :]
            )

    def steps(self) -> int:
        """About how many units will go."""
        if self._count is not None:
            return self._count
        return math.ceil(
            self._ratio * self._total * len(self._units) / max(1, self._parameters(self._units))
        )

    def reached(self, gone: list[Block]) -> bool:
        if self._count is not None:
            return len(gone) >= self._count
        if len(gone) == self._most:
            self._check(gone)
        return self._parameters(gone) >= self._ratio * self._total

    def _check(self, all_that_can: list[Block]) -> None:
        parameters = self._parameters(all_that_can)
        if parameters < self._ratio * self._total:
            raise PrunebenchError(
                f"ratio {self._ratio:g} is out of reach: all {len(all_that_can)} units that can go have"
                f" {parameters / self._total:.3f} of the model's parameters",
                hint="lower the ratio; embeddings and head count too, and they stay",
            )

    def _parameters(self, gone: list[Block]) -> int:
        """Parameters that go with these units: their matrices, the norms before them, and what an empty layer has left."""
        family = self._parts.family
        count = 0
        for index, layer in enumerate(self._parts.layers):
            kinds = {unit.kind for unit in gone if unit.layer == index}
            left = {
                kind
                for kind in KINDS["mix"]
                if self._parts.has(layer, kind) and kind not in kinds  # type: ignore[arg-type]
            }
            paths = [
                path
                for kind in kinds
                for path in (*family.blocks[kind], family.norms[kind])
                if path is not None
            ]
            modules = (
                [layer.get_submodule(path) for path in paths] if left else [layer] if kinds else []
            )
            count += sum(
                parameter.numel() for module in modules for parameter in module.parameters()
            )
        return count


class _Result(NamedTuple):
    """What the model loses with a unit; the lowest goes, among equals attentions, then lower layers, first."""

    loss: float
    kind: str
    layer: int
    unit: Block


class _Variant(NamedTuple):
    """The model without one more unit: the last layer's output by batch, and each batch's loss or a bound of it."""

    unit: Block
    ends: list[torch.Tensor]
    known: list[float]

    @property
    def bound(self) -> float:
        return math.fsum(self.known)


class _Search:
    """A greedy search: which units are left, what is gone, and the model to ask."""

    def __init__(
        self,
        model: Any,
        context: Context,
        units: list[Block],
        slack: float,
        looked_at: Callable[[int], None],
    ) -> None:
        self.stream = context.stream(model)
        self.left = list(units)
        self._gone: dict[int, set[Any]] = {layer: set() for layer in range(self.stream.layers)}
        self.variants = 0
        """How many were compared, so far."""
        self._looked_at = looked_at
        self._slack = 1 + slack
        """What rounding may add to a bound, as a factor."""
        self._expected = {unit: abs(place / len(units) - 0.67) for place, unit in enumerate(units)}
        """About each unit's loss when it was last looked at; before that any guess will do, and deep layers do less."""

    def step(self) -> _Result:
        """Remove one more unit from the search's model, and tell which."""
        stream = self.stream
        guess = min(self.left, key=self._expected.__getitem__)
        places = [self._place(unit) for unit in self.left]
        best: _Result | None = None
        tangents: _Tangents = []
        pending: list[_Variant] = []
        for first, end in (
            (self._place(guess), max(places) + 1),
            (0, self._place(guess)),
        ):  # so the guess comes first
            states = stream.start() if end else []
            for place in range(end):
                here = [
                    unit
                    for unit, its in zip(self.left, places, strict=True)
                    if its == place >= first
                ]
                for unit in sorted(here, key=guess.__ne__):
                    if best is None:
                        best, tangents = self._measure(unit, states)
                    else:
                        pending += self._bounded(unit, states, tangents, best.loss)
                        if len(pending) > PENDING:
                            best = self._settle(pending, tangents, best)
                    self._count()
                if place + 1 < end:
                    states = [self._past(place, batch, state) for batch, state in enumerate(states)]
        assert best is not None, "a step needs a unit"
        while pending:
            best = self._settle(pending, tangents, best)
        return self._commit(best)

    def step_as_released(self) -> _Result:
        """The same, every variant in full."""
        best = None
        states = self.stream.start()
        for unit in sorted(self.left, key=lambda unit: (unit.kind, unit.layer)):
            nlls = [
                self.stream.nll(batch, self._end(unit, batch, state, whole=True), model_dtype=True)
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

    def _commit(self, best: _Result) -> _Result:
        if math.isinf(best.loss):
            raise PrunebenchError(
                "the loss is infinite whichever unit goes", hint="use float32 or bfloat16"
            )
        self.left.remove(best.unit)
        self._gone[best.layer].add(best.kind)
        return best

    def _measure(self, unit: Block, states: list[torch.Tensor]) -> tuple[_Result, _Tangents]:
        """The loss without this unit, from the states at its place, and the tangents where it ends."""
        tangents, nlls = [], []
        for batch, state in enumerate(states):
            end = self._end(unit, batch, state)
            nlls.append(self.stream.nll(batch, end))
            tangents.append(self.stream.tangent(batch, end))
        self._expected[unit] = math.fsum(nlls)
        return _result(self._expected[unit], unit), tangents

    def _bounded(
        self, unit: Block, states: list[torch.Tensor], tangents: _Tangents, limit: float
    ) -> list[_Variant]:
        """The variant without this unit, from the states at its place; nothing if its loss exceeds the limit."""
        stream = self.stream
        ends, known = [], []
        for batch, (state, tangent) in enumerate(zip(states, tangents, strict=True)):
            ends.append(self._end(unit, batch, state))
            known.append(
                stream.nll(batch, ends[-1])
                if tangent is None
                else stream.bound(batch, ends[-1], tangent)
            )
            if math.fsum(known) > limit * self._slack:
                break
        self._expected[unit] = math.fsum(known) * len(states) / len(known)
        variant = _Variant(unit, ends, known)
        return [] if variant.bound > limit * self._slack else [variant]

    def _settle(self, pending: list[_Variant], tangents: _Tangents, best: _Result) -> _Result:
        """Compute the loss of the variant with the lowest bound, and drop those that cannot be better than the best."""
        variant = pending.pop(min(range(len(pending)), key=lambda place: pending[place].bound))
        for batch, (end, tangent) in enumerate(zip(variant.ends, tangents, strict=True)):
            if tangent is not None:
                variant.known[batch] = self.stream.nll(batch, end)
            if variant.bound > best.loss * self._slack:
                break
        else:
            best = min(best, _result(variant.bound, variant.unit))
        pending[:] = [
            other for other in pending if not other.bound > best.loss * self._slack
        ]  # also a NaN stays
        return best

    def _place(self, unit: Block) -> int:
        """Which state the unit reads: there is one before each unit, or before each layer where its units are siblings."""
        return unit.layer if self.stream.parallel else 2 * unit.layer + (unit.kind == "mlp")

    def _past(self, place: int, batch: int, state: torch.Tensor) -> torch.Tensor:
        """The state at the next place."""
        if self.stream.parallel:
            return self.stream.run(place, batch, state, self._gone[place])
        layer, second = divmod(place, 2)
        return self.stream.run(
            layer, batch, state, self._gone[layer] | {"attention" if second else "mlp"}
        )

    def _end(
        self, unit: Block, batch: int, state: torch.Tensor, *, whole: bool = False
    ) -> torch.Tensor:
        """The last layer's output without this unit, from the state at its place, or (``whole``) from layer 0's input."""
        first = 0 if whole else unit.layer
        for layer in range(first, self.stream.layers):
            gone = self._gone[layer] | ({unit.kind} if layer == unit.layer else set())
            if (
                layer == unit.layer
                and unit.kind == "mlp"
                and not whole
                and not self.stream.parallel
            ):
                gone = gone | {"attention"}  # whose output is in the state
            state = self.stream.run(layer, batch, state, gone)
        return state


def _result(loss: float, unit: Block) -> _Result:
    """Raises PrunebenchError where the loss is NaN."""
    if math.isnan(loss):
        raise PrunebenchError(
            f"the loss without layer {unit.layer}'s {unit.kind} is NaN",
            hint="use float32, or look for a damaged checkpoint",
        )
    return _Result(loss, unit.kind, unit.layer, unit)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return BlockPruner
