"""BESA's differentiable ranking: how many of the least important weights a line loses is learned.

arXiv:2402.16880, section 3.2. The weights of a line, a row or a column of a matrix, are ranked by
importance once. D candidate sparsities p_d fall from 1 to 0; a unit of lines has D coefficients
beta_d that sum to 1, and the sparsity a = sum_d beta_d p_d. Of each of its lines the int(n * a)
least important weights are removed. That has no gradient; it is taken from the probability that
the weight of rank k is removed,

    P_k = sum_d beta_d [k < int(n * p_d)],

as if the mask were 1 - P_k (a straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SLACK = 0.01
"""What a rounding error of a sparsity may cost, in weights of a line."""
_LARGEST_TILT = 1e5


def candidates(step: float) -> torch.Tensor:
    """The candidate sparsities 1, 1 - step, ..., 0; float32 [D]."""
    found = torch.arange(1.0, -step, -step)
    found[-1] = 0.0
    return found


def tilt(candidates: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Logits of the candidates whose softmax has the mean ``sparsity``, float32 [D].

    Of all distributions with that mean the one with the largest entropy: c * p_d. So at a sparsity
    of one half all are zero.
    """
    values = candidates.double()
    low, high = -_LARGEST_TILT, _LARGEST_TILT
    for _ in range(200):
        middle = (low + high) / 2
        mean = float((values * middle).softmax(0) @ values)
        low, high = (middle, high) if mean < sparsity else (low, middle)
    found = (low + high) / 2
    # The candidates of float32 are not quite symmetric: at one half this is not quite 0.
    return (values * (found if abs(found) > 1e-6 else 0.0)).float()


@dataclass(frozen=True)
class Ranked:
    """The weights of one linear, in the order in which its lines lose them."""

    weight: torch.Tensor
    """[lines, n]: the weight [out, in], or its transpose if lines are columns."""
    ranks: torch.Tensor
    """Rank of each weight in its line, from the least important, integers [lines, n]."""
    units: int
    """Number of groups of consecutive lines that share a sparsity; 0 if it is fixed."""
    columns: bool
    mixed: bool = False
    """Whether the gradient goes to other units and ranks, as in the released code for columns: it
    reads the probabilities, [units, n], as if they were [n, units]."""

    @property
    def lines_per_unit(self) -> int:
        return len(self.weight) // max(1, self.units)

    def masked(self, keep: torch.Tensor) -> torch.Tensor:
        """The weight [out, in] with zeros where ``keep``, bool [lines, n], is False."""
        return self.turned(self.weight * keep)

    def turned(self, lines: torch.Tensor) -> torch.Tensor:
        """[lines, n] -> [out, in]."""
        return lines.t() if self.columns else lines


def ranked(
    score: torch.Tensor,
    weight: torch.Tensor,
    units: int,
    *,
    columns: bool,
    mixed: bool = False,
) -> Ranked:
    """Rank a linear's weights by their score; of equal ones the lower index is lower.

    score, weight: [out, in]. ``mixed``: see `Ranked`.
    """
    lines = score.t() if columns else score
    order = lines.sort(dim=1, stable=True).indices  # [lines, n]
    # Ranks are needed in every step: two bytes each are a quarter of torch's indices.
    small = torch.int16 if order.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    place = torch.arange(order.shape[1], device=order.device, dtype=small)
    ranks = torch.empty_like(order, dtype=small).scatter_(1, order, place.expand_as(order))
    lines_of = weight.detach().t() if columns else weight.detach()
    return Ranked(lines_of, ranks, units, columns, mixed)


def thresholds(candidates: torch.Tensor, size: int) -> torch.Tensor:
    """How many weights of a line of ``size`` each candidate removes, int64 [D]."""
    # In Python's arithmetic, as in the released code: a product in float32 may differ by one.
    return torch.tensor([int(size * one) for one in candidates.tolist()])


class LearnedMask(torch.autograd.Function):
    """A weight without what its sparsities remove; the gradient goes to the coefficients."""

    @staticmethod
    def forward(
        ctx: Any,
        beta: torch.Tensor,
        counts: torch.Tensor,
        ranked: Ranked,
        thresholds: torch.Tensor,
    ) -> torch.Tensor:
        """``beta``: [units, D]; ``counts``: how many weights of a unit's lines go, [units]."""
        del beta  # only its gradient matters
        ctx.ranked, ctx.thresholds = ranked, thresholds
        return ranked.masked(kept(ranked, counts))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """From the gradient of the masked weight, [out, in], to that of beta, [units, D]."""
        of: Ranked = ctx.ranked
        lines = grad.t() if of.columns else grad
        if of.mixed:
            return -_mixed_sums(lines, of, ctx.thresholds), None, None, None
        sums = sums_by_rank(lines, of, ctx.thresholds)
        # d(mask of rank k) / d beta_d = -[k < t_d]
        return sums.view(of.units, of.lines_per_unit, -1).sum(1).neg_(), None, None, None


def sums_by_rank(grad: torch.Tensor, of: Ranked, thresholds: torch.Tensor) -> torch.Tensor:
    """Of grad * weight, the sums of the first t_d weights of each line by rank; float32 [lines, D].

    ``grad``: [lines, n]. A few lines at a time, in the same memory: on a CPU the passes over a
    whole matrix would take as long as its products.
    """
    lines, length = of.ranks.shape
    device = grad.device
    some = max(1, min(lines, (1 << 17 if device.type == "cpu" else 1 << 25) // length))
    product = torch.empty(some, length, device=device)
    by_rank = torch.empty_like(product)
    index = torch.empty(some, length, dtype=torch.int64, device=device)
    found = torch.empty(lines, len(thresholds), device=device)
    last = (thresholds - 1).clamp_min(0)
    for start in range(0, lines, some):
        rows = slice(start, min(start + some, lines))
        here = slice(0, rows.stop - start)
        torch.mul(grad[rows].float(), of.weight[rows].float(), out=product[here])
        index[here].copy_(of.ranks[rows])
        by_rank[here].scatter_(1, index[here], product[here])
        torch.cumsum(by_rank[here], 1, out=product[here])
        torch.index_select(product[here], 1, last, out=found[rows])
    return found.masked_fill_(thresholds == 0, 0.0)


def _mixed_sums(grad: torch.Tensor, of: Ranked, thresholds: torch.Tensor) -> torch.Tensor:
    """`sums_by_rank` of each unit, float32 [units, D], if the ranks and units are mixed up."""
    product = grad.float() * of.weight.float()  # [lines, n]
    by_rank = torch.empty_like(product).scatter_(1, of.ranks.long(), product)
    of_units = by_rank.view(of.units, of.lines_per_unit, -1).sum(1)  # [units, n]
    sums = of_units.t().reshape(of.units, -1).cumsum(1)
    return torch.nn.functional.pad(sums, (1, 0))[:, thresholds]


def kept(ranked: Ranked, counts: torch.Tensor) -> torch.Tensor:
    """Which weights are left, bool [lines, n]; ``counts``: of each unit, or of each line."""
    per_line = counts.repeat_interleave(len(ranked.weight) // len(counts))
    return ranked.ranks >= per_line[:, None].to(ranked.ranks.dtype)


def shifted(sparsities: torch.Tensor, sizes: torch.Tensor, budget: float) -> torch.Tensor:
    """The sparsities plus one number, within 0 and 1, so that they remove ``budget`` weights.

    All float64 [units]; ``sizes``: weights of each unit.
    """
    low, high = -1.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        removed = float((sizes * (sparsities + middle).clamp(0, 1)).sum())
        low, high = (middle, high) if removed < budget else (low, middle)
    return (sparsities + (low + high) / 2).clamp(0, 1)


def whole_counts(sparsities: torch.Tensor, lengths: torch.Tensor, budget: int) -> torch.Tensor:
    """How many weights each line loses, ``budget`` in all; int64 [lines].

    Each gets its share rounded down; what is missing goes to the largest remainders, of equal ones
    to the first. ``sparsities``, float64 [lines], must be those of `shifted`.
    """
    exact = sparsities * lengths
    found = (exact + 1e-6).floor().long()  # a share that is a whole number stays that number
    remainder = (exact - found).masked_fill(found >= lengths, -torch.inf)
    order = remainder.sort(descending=True, stable=True).indices
    found[order[: budget - int(found.sum())]] += 1
    return found


def split(values: torch.Tensor, of: Mapping[str, Ranked]) -> Mapping[str, torch.Tensor]:
    """The parts [units of the linear, ...] of a tensor [units of all linears, ...]."""
    parts: Sequence[torch.Tensor] = torch.split(values, [one.units for one in of.values()])
    return dict(zip(of, parts, strict=True))
