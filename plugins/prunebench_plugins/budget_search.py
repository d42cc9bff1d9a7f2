"""Budgeted search: every layer gets the variants of its attention and MLP that a budget allows.

In the manner of A. Bercovich et al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs"
(arXiv:2411.19146): blocks are replaced one at a time, and an exact choice is made of all together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

import prunebench
from prunebench import (
    Field,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    ReportSection,
    anatomy,
    hookimpl,
)
from prunebench_plugins.budget_knapsack import Option, choose
from prunebench_plugins.budget_latency import Shape, latency, latency_of
from prunebench_plugins.budget_quality import Cost, Trials
from prunebench_plugins.budget_report import BudgetPredictions
from prunebench_plugins.budget_sizes import (
    Sizes,
    Tokens,
    memory,
    memory_of,
    parameters,
    parameters_of,
)
from prunebench_plugins.budget_variants import (
    Item,
    Variant,
    Widths,
    items_of,
    make,
)
from prunebench_plugins.flap_scores import Metric
from prunebench_plugins.not_both import check_not_both

if TYPE_CHECKING:
    from prunebench import Anatomy, Block, Context

Share = Annotated[float, Field(gt=0, lt=1)]
Kind = Literal["parameters", "memory", "latency"]
USUAL_TARGET = 0.2


def _given(value: float | None) -> bool:
    return value is not None


_IN_USE = (OnlyIf(target_memory=_given), OnlyIf(target_latency=_given))
"""Marks of options that say how the model will be used."""


class Target(NamedTuple):
    """What the budget counts, and the share of it that has to go."""

    kind: Kind
    share: float

    @property
    def option(self) -> str:
        return f"target_{self.kind}"


class BudgetSearch(Method):
    """Choose a variant of every attention and MLP: the least loss of quality within a budget.

    A block stays whole, keeps some of its KV groups or MLP channels, or goes. FLAP's metric says
    which groups a narrower one keeps, and what the others add on average becomes a bias. The cost
    of a variant is what it does to the model's predictions if it alone is changed: the KL
    divergence from the dense model, or the loss. Its size is counted in parameters, in bytes of
    weights and KV cache, or in the time that it adds to a generation step on this machine. Dynamic
    programming finds the choice with the least sum of costs whose sizes fit (multiple-choice
    knapsack). Costs do not quite add up, so this is done in several `rounds` with a budget that
    shrinks in equal steps: each measures the costs again in the model that the last one chose, and
    may take back what that did.

    The record has the predicted cost beside the measured one, and so has the report.
    """

    name = "budget-search"
    reference = Reference(
        title="Puzzle: Distillation-Based NAS for Inference-Optimized LLMs",
        arxiv="2411.19146",
        code="https://github.com/NVIDIA/Model-Optimizer",
    )
    structure: ClassVar = frozenset({"width", "blocks"})
    needs_calibration = True

    class Options(prunebench.Options):
        target_parameters: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the model's parameters to remove at least;"
            f" {USUAL_TARGET} if no target is given",
        )
        target_memory: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the bytes of weights and KV cache to remove at least instead",
        )
        target_latency: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of the time of a generation step to remove instead, as measured on"
            " this machine",
        )
        attention: list[Share] = Field(
            [0.75, 0.5, 0.25],
            description="shares of the KV groups that narrower attentions keep",
        )
        mlp: list[Share] = Field(
            [0.75, 0.5, 0.25], description="shares of the channels that narrower MLPs keep"
        )
        multiple_of: int = Field(
            32, ge=1, description="channels of narrower MLPs are rounded to a multiple"
        )
        cost: Cost = Field(
            "kl", description="what a variant costs: KL divergence from dense, or loss on the text"
        )
        importance: Metric = Field(
            "WIFV",
            description="which groups narrower variants keep: FLAP's fluctuation times weight"
            " (WIFV), fluctuation alone (IFV), or Wanda's score (WIFN)",
        )
        bias: bool = Field(
            default=True, description="add what the removed groups add on average as a bias"
        )
        rounds: int = Field(
            3, ge=1, description="how often costs are measured, on the way to the budget"
        )
        resolution: int = Field(
            1000,
            ge=1,
            description="the choice is at least as good as the best one for a budget that is"
            " smaller by one part in this number",
        )
        prompt: Annotated[int, *_IN_USE] = Field(
            128, ge=1, description="tokens of the prompt, in the KV cache or when timed"
        )
        new_tokens: Annotated[int, *_IN_USE] = Field(
            8, ge=1, description="generated tokens, in the KV cache or when timed"
        )
        batch_size: Annotated[int, *_IN_USE] = Field(1, ge=1, description="sequences side by side")

        @model_validator(mode="after")
        def _one_target(self) -> Self:
            check_not_both(self, _TARGETS)
            return self

        @property
        def target(self) -> Target:
            for name, kind in _TARGETS.items():
                share = getattr(self, name)
                if share is not None:
                    return Target(kind, share)
            return Target("parameters", USUAL_TARGET)

    def prune(self, model: Any, context: Context) -> None:
        """Notes: the budget, what was predicted and measured, and the variants with their costs."""
        target = self.options.target
        if not target.share:
            return
        parts = anatomy(model)
        items = self._items(parts, context)
        sizes = self._sizes(parts, items, target, context)
        self._check(sizes, target)
        done, planned = 0, self.options.rounds * sum(len(item.variants) - 1 for item in items)

        def tried() -> None:
            nonlocal done
            done += 1
            context.progress(done, planned)

        trials = Trials(model, context, items, self.options.cost, tried)
        with trials.restored():
            found = self._search(trials, items, sizes, target)
            measured = trials.cost()
        context.notes |= {
            "budget": target.kind,
            "dense_size": sizes.total,
            "limit": _limit(sizes, target.share),
            "predicted_size": found.size,
            "predicted_cost": found.cost,
            "measured_cost": measured,
            "variants": found.table,
            "decoder_evaluations": round(trials.forward.decoder_passes, 3),
            "head_evaluations": round(trials.forward.head_passes, 3),
        }
        dense = copy.deepcopy(model) if target.kind == "latency" else None
        make(model, context, items, found.choice)
        context.notes["measured_size"] = (
            self._size(anatomy(model), target)
            if dense is None
            else latency(dense, model, sizes.total, context, self._shape)
        )

    def _items(self, parts: Anatomy, context: Context) -> list[Item]:
        options = self.options
        widths = Widths(options.attention, options.mlp, options.multiple_of)
        return items_of(parts, context, widths, options.importance, bias=options.bias)

    def _sizes(
        self, parts: Anatomy, items: Sequence[Item], target: Target, context: Context
    ) -> Sizes:
        if target.kind == "latency":
            return latency_of(parts, items, context, self._shape)
        sizes = parameters_of(parts, items)
        if target.kind == "parameters":
            return sizes
        return memory_of(parts, items, sizes, self._tokens)

    def _size(self, parts: Anatomy, target: Target) -> int:
        """What the model takes of the budget as it is now."""
        return parameters(parts) if target.kind == "parameters" else memory(parts, self._tokens)

    @property
    def _shape(self) -> Shape:
        return Shape(self.options.batch_size, self.options.prompt, self.options.new_tokens)

    @property
    def _tokens(self) -> Tokens:
        return Tokens(self.options.prompt + self.options.new_tokens, self.options.batch_size)

    def _check(self, sizes: Sizes, target: Target) -> None:
        """Raise PrunebenchError if even the smallest variants are too large."""
        least = sizes.fixed + sum(min(each) for each in sizes.of.values())
        if least > _limit(sizes, target.share):
            raise PrunebenchError(
                f"`{target.option}: {target.share:g}` is out of reach: the smallest variants of all"
                f" attentions and MLPs leave {least / sizes.total:.3f} of the dense model",
                hint="lower it; embeddings and head count too, and they are kept",
            )

    def _search(self, trials: Trials, items: Sequence[Item], sizes: Sizes, target: Target) -> Found:
        """Choose in rounds, each with the model that the last one chose."""
        rounds = self.options.rounds
        found: Found | None = None
        for number in range(1, rounds + 1):
            base, costs = trials.costs()
            # Costs add up well only for small steps, so the budget shrinks bit by bit.
            limit = _limit(sizes, target.share * number / rounds)
            found = _chosen(items, base, costs, sizes, limit, self.options.resolution)
            for item in items:
                trials.set(item, found.choice[item.block])
        assert found is not None
        return found


_TARGETS: dict[str, Kind] = {
    "target_parameters": "parameters",
    "target_memory": "memory",
    "target_latency": "latency",
}
"""What a budget counts, by the option that says how much."""


class Found(NamedTuple):
    """The choice of one round."""

    choice: dict[Block, Variant]
    size: int
    """Of the whole model."""
    cost: float
    """If costs added up; in nats a token."""
    table: dict[str, list[list[float]]]
    """Groups, size and cost of each variant, by block; the chosen one comes first."""


def _limit(sizes: Sizes, share: float) -> int:
    """The largest size that is allowed if ``share`` has to go."""
    return int((1 - share) * sizes.total)


def _chosen(
    items: Sequence[Item],
    base: float,
    costs: Mapping[Block, Sequence[float]],
    sizes: Sizes,
    limit: int,
    resolution: int,
) -> Found:
    """The variants with the least sum of costs, of a size of at most ``limit``."""
    options = [
        [Option(*both) for both in zip(costs[item.block], sizes.of[item.block], strict=True)]
        for item in items
    ]
    indices = choose(options, limit - sizes.fixed, resolution)
    assert indices is not None, "`_check` makes sure that the smallest variants fit"
    taken = [each[index] for each, index in zip(options, indices, strict=True)]
    table = {}
    for item, each, index in zip(items, options, indices, strict=True):
        rows = [
            [float(variant.groups), float(option.size), option.cost]
            for variant, option in zip(item.variants, each, strict=True)
        ]
        table[str(item.block)] = [rows.pop(index), *rows]
    return Found(
        {item.block: item.variants[i] for item, i in zip(items, indices, strict=True)},
        sizes.fixed + sum(option.size for option in taken),
        base + sum(option.cost for option in taken),
        table,
    )


@hookimpl
def prunebench_register_method() -> type[Method]:
    return BudgetSearch


@hookimpl
def prunebench_register_report_section() -> type[ReportSection]:
    return BudgetPredictions
