"""SparseGPT: remove weights column by column and let those to the right make up for it (arXiv:2301.00774)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from prunebench import (
    Field,
    LayerwiseMethod,
    Method,
    PrunebenchError,
    Reference,
    SparsityOptions,
    hookimpl,
    kth_lowest,
    lowest,
    pattern_of,
)

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

    Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """From columns [some, rows] and their diagonal of the factor [some] to True where a weight goes, [some, rows]."""

STRIDE = 32
"""Columns between two matrix products: few enough that updating them one by one stays in the caches."""
MOST_DAMPING = 100.0


class SparseGPT(LayerwiseMethod):
    """Minimise the squared error of every linear's outputs under a mask, one column after another, in one shot.

    A weight's cost is w^2 / U_jj^2, with H^-1 = U^T U and H the damped Hessian of the output error. The cheapest share of
    every block of columns goes, linear by linear, or for N:M the cheapest of every group when its turn comes.
    `mode=clean` removes exactly int(n * sparsity) weights of a block, ties by index; `mode=reference` follows the released
    code: everything at or below the sorted cost at that index. Inputs that are always zero lose all their weights.
    """

    name = "sparsegpt"
    reference = Reference(
        title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        arxiv="2301.00774",
        code="https://github.com/IST-DASLab/sparsegpt",
    )
    statistics: ClassVar = frozenset({"hessian"})

    class Options(SparsityOptions):
        block_size: int = Field(
            128, gt=0, description="input columns among which a linear's weights compete"
        )
        damping: float = Field(
            0.01,
            gt=0,
            le=MOST_DAMPING,
            description="share of the Hessian's mean diagonal that is added to its diagonal",
        )
        true_sequential: bool = Field(
            False,
            description="measure each group of linears behind the pruned ones before it in the same layer",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact count, or the threshold of the released code"
        )

        @model_validator(mode="after")
        def _whole_groups(self) -> Self:
            pattern = pattern_of(self.sparsity)
            if pattern and self.block_size % pattern.of:
                below = self.block_size // pattern.of * pattern.of
                raise ValueError(
                    f"block_size {self.block_size} is no multiple of {pattern.of}, so that groups of {pattern} would be cut;"
                    f" use block_size {below or pattern.of}"
                )
            return self

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.log = logging.getLogger("prunebench")
        self.losses: dict[int, float] = {}
        self.damped: list[dict[str, Any]] = []

    @property
    def true_sequential(self) -> bool:
        return bool(self.options.true_sequential)

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``reconstruction_loss`` of every layer (squared output error of its linears, summed over the tokens of
        a window, mean over windows, on the damped Hessian), and ``damping_raised`` where the options' was too little.
        """
        self.log, self.losses, self.damped = context.log, {}, []
        super().prune(model, context)
        context.notes["reconstruction_loss"] = list(self.losses.values())
        if self.damped:
            context.notes["damping_raised"] = self.damped

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        """One Hessian, one factor and one sweep for all the rows that read this input."""
        first, widths = stats[0], [len(weight) for weight in weights]
        hessian = first.hessian
        with first.naming():
            pattern = pattern_of(self.options.sparsity)
            if pattern and len(hessian) % pattern.of:
                raise PrunebenchError(
                    f"groups of {pattern.of} do not divide {len(hessian)} input features",
                    hint="choose an N:M whose M divides every linear's input, or a share such as 0.5",
                )
            dead = hessian.diagonal() == 0
            hessian.diagonal()[dead] = 1
            factor, damping = self._factor(hessian, first)
            # Transposed, a column of the weights is contiguous: [in, all rows]
            columns = torch.cat([weight.t().to(hessian.dtype) for weight in weights], dim=1)
            columns[dead] = 0
            loss = sweep(
                columns,
                factor,
                widths,
                self.options.sparsity,
                block_size=self.options.block_size,
                threshold=self.options.mode == "reference",
            )
            if not bool(torch.isfinite(columns.sum())):
                raise PrunebenchError(
                    f"the weights are not finite after pruning (damping {damping:g})",
                    hint="look for a damaged checkpoint, or raise `damping`",
                )
        self.losses[first.layer] = self.losses.get(first.layer, 0.0) + loss
        for weight, rows in zip(weights, torch.split(columns, widths, dim=1), strict=True):
            weight.copy_(rows.t())

    def _factor(self, hessian: torch.Tensor, stats: LinearStats) -> tuple[torch.Tensor, float]:
        """The factor of the damped inverse, and the damping: ten times more until the Hessian is positive definite."""
        damping = self.options.damping
        while (factor := inverse_factor(hessian, damping)) is None:
            if damping * 10 > MOST_DAMPING:
                raise PrunebenchError(
                    f"the Hessian of its input is not positive definite, with damping up to {damping:g}",
                    hint="calibrate on more windows, or use float32",
                )
            damping *= 10
            self.log.warning(
                "layer %d, %s: the Hessian is not positive definite; damping %g",
                stats.layer,
                stats.name,
                damping,
            )
        if damping != self.options.damping:
            self.damped.append({"layer": stats.layer, "linear": stats.name, "damping": damping})
        return factor, damping


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor | None:
    """U, upper triangular, with (H + damping * mean(diag H) * I)^-1 = U^T U; None where that is not positive definite.

    hessian [in, in] of any floating type stays as it is.
    """
    # With P the reversal of the features and P H P = L L^T: H = (P L P)(P L P)^T, and P L P is upper triangular. Its inverse
    # is U, by one factorisation where inverting H itself would need two.
    mirrored = hessian.flip(0, 1)
    mirrored.diagonal().add_(damping * hessian.diagonal().mean())
    lower, info = torch.linalg.cholesky_ex(mirrored)
    if int(info) != 0:
        return None
    del mirrored
    unit = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor = torch.linalg.solve_triangular(lower, unit, upper=False)
    return factor.flip(0, 1) if bool(torch.isfinite(factor.diagonal()).all()) else None


def sweep(
    columns: torch.Tensor,
    factor: torch.Tensor,
    widths: Sequence[int],
    sparsity: float | str,
    *,
    block_size: int = 128,
    threshold: bool = False,
) -> float:
    """Prune ``columns`` [in, rows] in place, from the first to the last; gives 1/2 tr(dW H dW^T).

    ``factor`` as from `inverse_factor`; ``widths``: rows of each linear, whose weights compete apart from the others';
    ``threshold``: the released code's rule for a share instead of the exact count.
    """
    pattern = pattern_of(sparsity)
    choose = (
        _cheapest_of_group(pattern.of - pattern.keep)
        if pattern
        else _cheapest(widths, float(sparsity), threshold)
    )
    loss = columns.new_zeros(())
    for start in range(0, len(columns), block_size):
        end = min(start + block_size, len(columns))
        block = columns[start:end]
        errors = _prune_block(
            block, factor[start:end, start:end], choose, pattern.of if pattern else None
        )
        columns[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
        loss += errors.square().sum() / 2
    return float(loss)


def _prune_block(
    block: torch.Tensor, factor: torch.Tensor, choose: Choose, of: int | None
) -> torch.Tensor:
    """Prune a block of columns [width, rows] in place; gives (w - q) / U_jj of each weight, [width, rows].

    ``of``: choose what goes for that many columns when their turn comes; None: for all at once, beforehand.
    """
    width = len(block)
    diagonal = factor.diagonal()
    inverse = diagonal.reciprocal()[:, None]
    gone = torch.zeros_like(block, dtype=torch.bool) if of else choose(block, diagonal)
    scale = (
        torch.zeros_like(block) if of else gone * inverse
    )  # 1 / U_jj where a weight goes, else 0
    errors = torch.empty_like(block)
    stride = STRIDE if of is None else of * max(1, STRIDE // of)
    rows, scales, error_rows = block.unbind(), scale.unbind(), errors.unbind()
    for start in range(0, width, stride):
        end = min(start + stride, width)
        for j in range(start, end):
            if of and j % of == 0:
                group = slice(j, j + of)
                gone[group] = choose(block[group], diagonal[group])
                torch.mul(gone[group], inverse[group], out=scale[group])
            torch.mul(rows[j], scales[j], out=error_rows[j])
            if j + 1 < end:
                block[j + 1 : end].addr_(factor[j, j + 1 : end], error_rows[j], alpha=-1)
        block[end:].addmm_(factor[start:end, end:].t(), errors[start:end], alpha=-1)
    block.masked_fill_(gone, 0)
    return errors


def _cost(columns: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """What removing each weight costs, w^2 / U_jj^2; columns [some, rows], diagonal [some]."""
    return columns.square() / diagonal.square()[:, None]


def _cheapest(widths: Sequence[int], share: float, threshold: bool) -> Choose:
    """The cheapest share of each linear's weights, `widths` rows each."""

    def of_linear(cost: torch.Tensor) -> torch.Tensor:
        if threshold:
            return cost <= kth_lowest(cost.reshape(1, -1), int(cost.numel() * share) + 1)
        return lowest(cost, share, group="matrix")

    def choose(columns: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
        costs = torch.split(_cost(columns, diagonal), list(widths), dim=1)
        return torch.cat([of_linear(cost) for cost in costs], dim=1)

    return choose


def _cheapest_of_group(zeros: int) -> Choose:
    """The ``zeros`` cheapest of the columns, in every row."""

    def choose(columns: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
        cost = _cost(columns, diagonal)
        cheapest = cost.topk(zeros, dim=0, largest=False, sorted=False).indices
        return torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest, value=True)

    return choose


@hookimpl
def prunebench_register_method() -> type[Method]:
    return SparseGPT
