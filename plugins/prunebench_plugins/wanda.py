"""Wanda: remove the weights with the smallest |w| * ||x|| (arXiv:2306.11695, equation 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch

from prunebench import (
    AddedLater,
    Field,
    LayerwiseOptions,
    LinearMethod,
    Method,
    OnlyIf,
    Reference,
    hookimpl,
    is_share,
)
from prunebench_plugins.c4_text import C4

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

FIRST_ALPHA, LARGEST_ALPHA = 0.4, 0.8
PRECISION = 0.001
"""The search for alpha ends at this difference in sparsity, or at this range of alpha."""


class Wanda(LinearMethod):
    """Remove the smallest |w| * ||x|| of every output row, or of every group for N:M.

    With `use_variant` rows differ in how much they lose, as with this option of the released code:
    each loses its smallest scores as long as their sum is at most alpha times the sum of the row.
    One alpha for each matrix is found by bisection, from 0.4 between 0 and 0.8, so that a sparsity
    of about 0.9 or more may be out of reach.
    """

    name = "wanda"
    reference = Reference(
        title="A Simple and Effective Pruning Approach for Large Language Models",
        arxiv="2306.11695",
        code="https://github.com/locuslab/wanda",
    )
    published_calibration: ClassVar = C4
    statistics: ClassVar = frozenset({"input_norm"})
    group = "row"

    class Options(LayerwiseOptions):
        use_variant: Annotated[bool, AddedLater(), OnlyIf(sparsity=is_share)] = Field(
            default=False,
            description="each row loses the same part of its sum of scores, not of its weights",
        )

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.differences: list[float] = []

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``largest_sparsity_difference``.

        With `use_variant`, the largest difference of a linear's sparsity from what was asked for.
        """
        self.differences = []
        super().prune(model, context)
        if self.differences:
            context.notes["largest_sparsity_difference"] = max(self.differences)

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        return weight.abs().float().mul_(stats.input_norm)  # [out, in] * [in]

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        sparsity = self.sparsity_of(stats)
        if isinstance(sparsity, str) or not self.options.use_variant:
            return super().mask(weight, stats)
        mask = lowest_by_sum(self.score(weight, stats), sparsity)
        # The search may end at some distance from the sparsity, or not be able to reach it.
        self.differences.append(abs(float(mask.float().mean()) - sparsity))
        return mask


def lowest_by_sum(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for the weights to remove, bool [out, in], about the share ``sparsity`` of them.

    Of each row of ``score`` [out, in] the lowest whose sum is at most alpha times the row's sum;
    alpha is found by bisection.
    """
    ordered, order = score.sort(dim=1, stable=True)
    sums = ordered.cumsum(dim=1)  # [out, in]
    total = score.sum(dim=1, keepdim=True)
    low, high, alpha = 0.0, LARGEST_ALPHA, FIRST_ALPHA
    while True:
        removed = sums <= alpha * total  # the first few of each row in order
        found = float(removed.float().mean())
        if sparsity == 0 or abs(found - sparsity) <= PRECISION or high - low < PRECISION:
            break
        low, high = (low, alpha) if found > sparsity else (alpha, high)
        alpha = (low + high) / 2
    if sparsity == 0:
        removed = torch.zeros_like(removed)
    return torch.zeros_like(removed).scatter_(1, order, removed)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Wanda
