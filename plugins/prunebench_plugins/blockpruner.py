"""BlockPruner: remove attentions and MLPs one by one, each time the one that is missed least.

arXiv:2406.10594, algorithm 1. The search is in `removal_search`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

import prunebench
from prunebench import Block, Field, Method, PrunebenchError, Reference, anatomy, hookimpl
from prunebench_plugins.not_both import check_not_both
from prunebench_plugins.removal_search import Result, Search, Unit

if TYPE_CHECKING:
    from prunebench import Anatomy, Context

KINDS = {"mix": ("attention", "mlp"), "mha": ("attention",), "mlp": ("mlp",)}
RATIO = 0.2


class BlockPruner(Method):
    """Remove the units that raise the calibration perplexity least, one after the other.

    `mode=reference` is the released search: every variant in full, softmax in the model's dtype, so
    that in bfloat16 near-ties fall by rounding as they do there. Among equals both modes remove the
    lower layer, and attentions before MLPs.
    """

    name = "blockpruner"
    reference = Reference(
        title="BlockPruner: Fine-grained Pruning for Large Language Models",
        arxiv="2406.10594",
        code="https://github.com/MrGGLS/BlockPruner",
    )
    structure: ClassVar = frozenset({"blocks"})
    published_calibration: ClassVar = {
        "corpus": "alpaca",
        "sampler": "joined-rows",
        "rows": 256,
        "length": 2048,
    }
    needs_calibration = True

    class Options(prunebench.Options):
        blocks: Literal["mix", "mha", "mlp"] = Field(
            "mix", description="which units can be removed: attentions (mha), MLPs, or both (mix)"
        )
        count: int | None = Field(None, ge=0, description="number of units to remove")
        ratio: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="share of all parameters to remove at least;"
            f" {RATIO} if neither ratio nor count is given",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="fast and exact, or the released search"
        )

        @model_validator(mode="after")
        def _one_of_them(self) -> Self:
            check_not_both(self, ("ratio", "count"))
            return self

    def prune(self, model: Any, context: Context) -> None:
        parts = anatomy(model)
        units = [block for block in parts.blocks if block.kind in KINDS[self.options.blocks]]
        budget = _Budget(parts, units, self.options)
        planned = sum(range(len(units) - budget.steps() + 1, len(units) + 1))
        search = Search(
            model,
            context,
            [Unit((unit.kind,), unit.layer) for unit in units],
            lambda done: context.progress(done, max(done, planned)),
        )
        gone: list[Block] = []
        perplexities: list[float] = []
        while not budget.reached(gone):
            best = self._step(search)
            gone.append(Block(best.unit.layer, best.unit.kinds[0]))
            perplexities.append(search.perplexity(best))
        context.notes |= {
            "removed_in_order": [f"{context.kept_layers[unit.layer]}.{unit.kind}" for unit in gone],
            "perplexity_after_each": perplexities,
            **search.cost(),
        }
        context.remove_blocks(model, gone)

    def _step(self, search: Search) -> Result:
        """Remove the unit whose absence gives the lowest loss."""
        if self.options.mode == "clean":
            return search.step()
        # `min` takes the first of equal losses, as the released loop does.
        return search.remove(min(search.every_as_released(), key=lambda result: result.loss))


class _Budget:
    """How much to remove. Raises PrunebenchError if there is not that much."""

    def __init__(self, parts: Anatomy, units: list[Block], options: Any) -> None:
        self._parts = parts
        self._units = units
        self._total: int = sum(parameter.numel() for parameter in parts.model.parameters())
        self._count: int | None = options.count
        self._ratio: float = RATIO if options.ratio is None else options.ratio
        most = len(units) - (len(units) == len(parts.blocks))  # the model keeps one block
        if self._count is not None and self._count > most:
            raise PrunebenchError(
                f"{self._count} units cannot be removed: of {len(units)} ({options.blocks}) at most"
                f" {most} can",
                hint=f"set `count` to {most} or less",
            )
        if self._count is None:
            self._most = most
            # The largest of them: if these are too little, no choice reaches the ratio.
            self._check(
                sorted(units, key=lambda unit: self._parameters([unit]))[len(units) - most :]
            )

    def steps(self) -> int:
        """About how many units will be removed."""
        if self._count is not None:
            return self._count
        return math.ceil(
            self._ratio * self._total * len(self._units) / max(1, self._parameters(self._units))
        )

    def reached(self, gone: list[Block]) -> bool:
        """Whether removing these units is enough."""
        if self._count is not None:
            return len(gone) >= self._count
        if len(gone) == self._most:
            self._check(gone)
        return self._parameters(gone) >= self._ratio * self._total

    def _check(self, removable: list[Block]) -> None:
        parameters = self._parameters(removable)
        if parameters < self._ratio * self._total:
            raise PrunebenchError(
                f"ratio {self._ratio:g} is out of reach: all {len(removable)} units that can be"
                f" removed have {parameters / self._total:.3f} of the model's parameters",
                hint="lower the ratio; embeddings and head count too, and they are kept",
            )

    def _parameters(self, gone: list[Block]) -> int:
        """Parameters that these units take with them.

        Their matrices, the norms before them, and everything that an empty layer still has.
        """
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
                if (block := self._parts.sub_block(layer, kind)) is not None
                for path in (*block.modules, *block.norms)
            ]
            modules = (
                [layer.get_submodule(path) for path in paths] if left else [layer] if kinds else []
            )
            count += sum(
                parameter.numel() for module in modules for parameter in module.parameters()
            )
        return count


@hookimpl
def prunebench_register_method() -> type[Method]:
    return BlockPruner
