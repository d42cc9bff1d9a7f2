"""Magnitude pruning: remove the weights with the smallest absolute value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import model_validator

from prunebench import (
    Field,
    LayerwiseOptions,
    LinearMethod,
    Method,
    OnlyIf,
    Reference,
    hookimpl,
    kth_lowest,
    lowest_overall,
    pattern_of,
    set_to_zero,
)

if TYPE_CHECKING:
    from prunebench import Context, LinearStats


class Magnitude(LinearMethod):
    """Remove the smallest |w| of every matrix, of every group for N:M, or of all matrices together.

    `mode=clean` removes exactly int(n * sparsity) weights, ties by index. `mode=reference` follows
    Wanda's code: it removes every weight that is at most the sorted |w| at that index, so at least
    one more, and all that tie with it; in N:M groups torch.topk picks among ties. This matters for
    models that were quantised before: their groups are full of ties.

    `scope=global` compares the weights of all layers, so that some matrices lose more than others.
    It removes exactly int(total * sparsity) weights, ties by layer, linear and index. Every matrix
    keeps at least the share `min_density` of its weights.
    """

    name = "magnitude"
    reference = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        arxiv="1506.02626",
        code="https://github.com/locuslab/wanda",
    )

    class Options(LayerwiseOptions):
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact count, or the threshold in Wanda's code"
        )
        scope: Literal["layer", "global"] = Field(
            "layer", description="weights compete within their matrix, or across the whole model"
        )
        min_density: Annotated[float, OnlyIf(scope="global")] = Field(
            0.01,
            ge=0,
            le=1,
            description="share of its weights that every matrix keeps at least; for scope global",
        )

        @model_validator(mode="after")
        def _global_scope_is_plain(self) -> Self:
            if self.scope == "global" and pattern_of(self.sparsity):
                raise ValueError(
                    f"{self.sparsity} is decided group by group: it needs `scope: layer`"
                )
            if self.scope == "global" and self.mode == "reference":
                raise ValueError(
                    "Wanda's code has no global threshold: `mode: reference` needs `scope: layer`"
                )
            return self

    @classmethod
    def refuses_allocation(cls, options: Any) -> str | None:
        own = "`scope: global` decides it" if options.scope == "global" else None
        return own or super().refuses_allocation(options)

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        return (
            "`scope: global` compares the weights of all layers"
            if options.scope == "global"
            else None
        )

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:  # noqa: ARG002
        return _magnitude(weight)

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        sparsity = self.sparsity_of(stats)
        if self.options.mode == "clean":
            return super().mask(weight, stats)
        score = self.score(weight, stats)
        if pattern := pattern_of(sparsity):
            groups = score.reshape(-1, pattern.of)  # [out * in / of, of]
            gone = groups.topk(pattern.of - pattern.keep, largest=False).indices
            return (
                torch.zeros_like(groups, dtype=torch.bool)
                .scatter_(1, gone, value=True)
                .view_as(score)
            )
        # The released code indexes the sorted scores with the count: one weight more than asked
        # for.
        index = min(int(score.numel() * sparsity), score.numel() - 1)
        return score <= kth_lowest(score.reshape(1, -1), index + 1)

    def prune(self, model: Any, context: Context) -> None:
        if self.options.scope == "layer":
            super().prune(model, context)
            return
        weights = {
            path: linear.weight
            for path, linear in context.chosen_linears(model, self.options).items()
        }
        masks = lowest_overall(
            weights, _magnitude, self.options.sparsity, min_density=self.options.min_density
        )
        densities = {}
        for done, (path, mask) in enumerate(masks, start=1):
            set_to_zero(weights[path], mask)
            densities[path] = 1 - int(mask.sum()) / mask.numel()
            context.progress(done, len(weights))
        lowest = min(densities, key=densities.__getitem__)
        context.notes |= {"lowest_density": densities[lowest], "lowest_density_in": lowest}


def _magnitude(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().float()


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Magnitude
