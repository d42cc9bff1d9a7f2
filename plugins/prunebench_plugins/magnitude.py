"""Magnitude pruning: drop the weights that are smallest in absolute value, matrix by matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from prunebench import Field, LinearMethod, Method, Reference, SparsityOptions, hookimpl, pattern_of

if TYPE_CHECKING:
    from prunebench import LinearStats


class Magnitude(LinearMethod):
    """Drop the smallest |w| of every matrix, or of every group for N:M.

    `mode=clean` removes exactly int(n * sparsity) weights, ties by index. `mode=reference` follows Wanda's code: everything
    at or below the sorted |w| at that index goes, so at least one weight more and all that tie with it; in N:M groups
    torch.topk picks among ties. It matters for models that were quantised once: their groups are full of ties.
    """

    name = "magnitude"
    reference = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        arxiv="1506.02626",
        code="https://github.com/locuslab/wanda",
    )

    class Options(SparsityOptions):
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact count, or the threshold of Wanda's code"
        )

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:  # noqa: ARG002
        return weight.abs().float()

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        sparsity = self.options.sparsity
        if self.options.mode == "clean":
            return super().mask(weight, stats)
        score = self.score(weight, stats)
        if pattern := pattern_of(sparsity):
            groups = score.reshape(-1, pattern.of)
            gone = groups.topk(pattern.of - pattern.keep, largest=False).indices
            return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, gone, value=True).view_as(score)
        threshold = score.flatten().kthvalue(int(score.numel() * sparsity) + 1).values
        return score <= threshold


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Magnitude
