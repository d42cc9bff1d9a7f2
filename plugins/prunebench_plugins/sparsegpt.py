"""SparseGPT: remove weights column by column; the columns to the right make up for it.

arXiv:2301.00774, algorithm 1. Here U is the upper triangular factor of the inverse of the damped
Hessian, H^-1 = U^T U. Removing the weight w_j of a row costs w_j^2 / U_jj^2 (the paper's epsilon),
and the best update of the weights behind it is -w_j / U_jj * U_j,(j+1):.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch

from prunebench import (
    Field,
    LayerwiseMethod,
    LayerwiseOptions,
    Method,
    OnlyIf,
    PrunebenchError,
    Reference,
    hookimpl,
    is_share,
    kth_lowest,
    lowest,
    pattern_of,
    set_to_zero,
)
from prunebench_plugins.c4_text import C4
from prunebench_plugins.sparsegpt_kernel import Kernel

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

    Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """From columns [some, rows] and their part of U's diagonal, [some], to True for the weights to
    remove, [some, rows]."""

STRIDE = 16
"""Columns between two matrix products: so few that updating them one by one stays in the caches."""
PANEL = 192
PANELS = 8
"""Least columns of a factor, or of its inverse, that are computed together; panels of a large one.

Each solve copies what is left of the factor, so that more panels would save no more.
"""
TURNED = 192
"""Columns that are transposed together."""
MOST_DAMPING = 100.0


class SparseGPT(LayerwiseMethod):
    """Minimise the squared error of every linear's outputs under a mask, column by column.

    A weight costs w^2 / U_jj^2, with H^-1 = U^T U and H the damped Hessian of the output error.
    From every block of columns the cheapest share is removed, linear by linear; for N:M the
    cheapest of every group when the sweep reaches it. `mode=clean` removes exactly int(n *
    sparsity) weights of a block, ties by index; `mode=reference` follows the released code: all
    weights whose cost is at most the sorted cost at that index, and in N:M groups torch.topk picks
    among ties. Inputs that are always zero lose all their weights.
    """

    name = "sparsegpt"
    reference = Reference(
        title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        arxiv="2301.00774",
        code="https://github.com/IST-DASLab/sparsegpt",
    )
    published_calibration: ClassVar = C4
    statistics: ClassVar = frozenset({"hessian"})

    class Options(LayerwiseOptions):
        block_size: Annotated[int, OnlyIf(sparsity=is_share)] = Field(
            128,
            gt=0,
            description="input columns within which a linear's weights compete; for a share",
        )
        damping: float = Field(
            0.01,
            gt=0,
            le=MOST_DAMPING,
            description="share of the Hessian's mean diagonal that is added to its diagonal",
        )
        true_sequential: bool = Field(
            False,
            description="measure each group of linears behind the pruned groups before it in its"
            " layer",
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact count, or the threshold of the released code"
        )

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.log = logging.getLogger("prunebench")
        self.losses: dict[int, float] = {}
        self.damped: list[dict[str, Any]] = []
        self.kernel = Kernel()

    @property
    def true_sequential(self) -> bool:
        return bool(self.options.true_sequential)

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``reconstruction_loss``, ``damping_raised`` and ``not_compiled``.

        The first is, for each layer, the squared output error of its linears on the damped
        Hessian, summed over the tokens of a window, mean over windows. The second lists the
        linears for which the option `damping` was too small. The third says why a GPU ran the
        loop over columns without a compiled kernel.
        """
        self.log, self.losses, self.damped = context.log, {}, []
        super().prune(model, context)
        context.notes["reconstruction_loss"] = list(self.losses.values())
        context.notes |= self.remarks()

    def remarks(self) -> dict[str, Any]:
        """The notes on what did not go as asked for."""
        found = {"damping_raised": self.damped, "not_compiled": self.kernel.refused}
        return {name: remark for name, remark in found.items() if remark}

    def prune_group(
        self,
        weights: Sequence[torch.Tensor],
        stats: Sequence[LinearStats],
        gone: torch.Tensor | None = None,
    ) -> None:
        """All rows that read this input share one Hessian, one factor and one sweep.

        ``gone``: the weights to remove if another method has chosen them, bool [in, all rows].
        """
        first = stats[0]
        linears = [
            Rows(len(weight), self.sparsity_of(each))
            for weight, each in zip(weights, stats, strict=True)
        ]
        hessian = first.hessian  # [in, in]
        with first.naming():
            pattern = pattern_of(linears[0].sparsity)
            if pattern and len(hessian) % pattern.of:
                raise PrunebenchError(
                    f"groups of {pattern.of} do not divide {len(hessian)} input features",
                    hint="choose an N:M whose M divides every linear's input, or a share such as"
                    " 0.5",
                )
            # An input that is always zero gives H a zero row: make it invertible, drop the weights.
            dead = hessian.diagonal() == 0
            hessian.diagonal()[dead] = 1
            factor, damping = self._factor(hessian, first)
            # Transposed, so that a column of the weights is contiguous: [in, all rows]
            columns = torch.cat([weight.t().to(hessian.dtype) for weight in weights], dim=1)
            columns[dead] = 0
            loss = sweep(
                columns,
                factor,
                linears,
                block_size=self.options.block_size,
                threshold=self.options.mode == "reference",
                gone=gone,
                kernel=self.kernel if columns.device.type == "cuda" else None,
            )
            if loss is None:
                raise PrunebenchError(
                    f"the weights are not finite after pruning (damping {damping:g})",
                    hint="look for a damaged checkpoint, or raise `damping`",
                )
        self.losses[first.layer] = self.losses.get(first.layer, 0.0) + loss
        sizes = [linear.size for linear in linears]
        for weight, part in zip(weights, torch.split(columns, sizes, dim=1), strict=True):
            # Some columns at a time: then torch transposes in half the time of the whole.
            for start in range(0, len(part), TURNED):
                some = slice(start, start + TURNED)
                weight[:, some].copy_(part[some].t())

    def _factor(self, hessian: torch.Tensor, stats: LinearStats) -> tuple[torch.Tensor, float]:
        """U, and the damping: ten times more until the Hessian is positive definite."""
        damping = self.options.damping
        while (factor := inverse_factor(hessian, damping)) is None:
            if damping * 10 > MOST_DAMPING:
                raise PrunebenchError(
                    "the Hessian of its input is not positive definite, with damping up to"
                    f" {damping:g}",
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


class Rows(NamedTuple):
    """The rows of one linear among all that are swept together; their weights compete."""

    size: int
    sparsity: float | str


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor | None:
    """U, upper triangular [in, in], with (H + damping * mean(diag H) * I)^-1 = U^T U.

    ``hessian``: [in, in] of any floating type; it does not change. None if it is not positive
    definite.
    """
    # Let P reverse the order of the features, and P H P = L L^T. Then H = (P L P)(P L P)^T, and P
    # L P is upper triangular, so its inverse is U. That takes one factorisation; inverting H and
    # factorising the result, as in the paper, takes two.
    # It is symmetric; turned, its columns are contiguous, as LAPACK's routines want them.
    mirrored = hessian.flip(0, 1).t()
    mirrored.diagonal().add_(damping * hessian.diagonal().mean())
    if not _factorise(mirrored):
        return None
    factor = _inverse_of_lower(mirrored)
    return factor.flip(0, 1) if bool(torch.isfinite(factor.diagonal()).all()) else None


def _width(size: int) -> int:
    """Columns of one panel."""
    return max(PANEL, size // PANELS)


def _factorise(matrix: torch.Tensor) -> bool:
    """Put the Cholesky factor of ``matrix`` [in, in] into its lower triangle; False if it has none.

    Panel by panel: nearly all operations are matrix products, in less than half the time of
    LAPACK's factorisation of the whole. What is above the panels' squares stays.
    """
    size = len(matrix)
    width = _width(size)
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    for start in range(0, size, width):
        end = min(start + width, size)
        panel = matrix[start:, start:end]
        panel.addmm_(matrix[start:, :start], matrix[start:end, :start].t(), alpha=-1)
        square, info = torch.linalg.cholesky_ex(panel[: end - start])
        panel[: end - start] = square
        below = panel[end - start :]
        below.copy_(torch.linalg.solve_triangular(square.t(), below, upper=True, left=False))
        failed += info
    return int(failed) == 0


def _inverse_of_lower(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular matrix [in, in]; what is above its diagonal is not read."""
    size = len(lower)
    width = _width(size)
    unit = torch.eye(size, width, dtype=lower.dtype, device=lower.device)
    inverse = torch.zeros_like(lower)
    # Column j begins at row j. Solved panel by panel, from the diagonal down, that is a third of
    # the operations of one solve with the whole unit matrix.
    for start in range(0, size, width):
        rest, panel = slice(start, size), slice(start, start + width)
        target = inverse[rest, panel]
        found = torch.linalg.solve_triangular(
            lower[rest, rest], unit[: len(target), : target.shape[1]], upper=False
        )
        target.copy_(found)
    return inverse


def sweep(
    columns: torch.Tensor,
    factor: torch.Tensor,
    linears: Sequence[Rows],
    *,
    block_size: int = 128,
    threshold: bool = False,
    gone: torch.Tensor | None = None,
    kernel: Kernel | None = None,
) -> float | None:
    """Prune ``columns`` [in, rows] in place, from the first to the last; return 1/2 tr(dW H dW^T).

    ``factor``: from `inverse_factor`. ``linears``: who owns the rows, in their order; if one has
    an N:M pattern all have, with the same M. ``threshold``: the released code's choice, instead of
    the exact count with ties by index. ``gone``: what to remove, bool [in, rows], if that is
    decided already. ``kernel`` runs the loop over the columns, if it can. None is returned if a
    weight or its cost is not finite.
    """
    choose, highest = _cheapest(linears, threshold)
    of = _group_size(linears) if gone is None else None
    if of:
        # Groups are chosen one by one, so blocks change only rounding; they must not cut a group.
        block_size = max(1, block_size // of) * of
    # torch.topk picks among ties, in the loop only
    fits = kernel is not None and kernel.takes(of) and not (of and threshold)
    zeros = _zeros_of_rows(linears, columns.device) if of and fits else None
    scratch = _Scratch(columns[:block_size], of or STRIDE)
    loss = columns.new_zeros(())
    for start in range(0, len(columns), block_size):
        end = min(start + block_size, len(columns))
        block, upper = columns[start:end], factor[start:end, start:end]
        if gone is not None:
            choose = _decided(gone[start:end])
        if kernel is not None and fits and kernel.refused is None:
            chosen = choose(block, upper.diagonal()) if zeros is None else zeros
            errors = kernel.prune_block(block, upper, chosen, of)
        else:
            errors = _prune_block(block, upper, choose, of, scratch)
        # All columns behind the block make up for it in one product:
        # [in - end, width] @ [width, rows]
        columns[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
        flat = errors.flatten()
        loss += flat.dot(flat) / 2
    # One look at the end: on a GPU a look at each block would wait for it.
    found, *others = torch.stack([loss, columns.sum(), *highest]).tolist()
    return float(found) if all(map(math.isfinite, others)) else None


def _group_size(linears: Sequence[Rows]) -> int | None:
    """M of the N:M patterns of the linears; None for shares."""
    pattern = pattern_of(linears[0].sparsity)
    return pattern.of if pattern else None


def _zeros_of_rows(linears: Sequence[Rows], device: torch.device) -> torch.Tensor:
    """How many weights each row loses in a group of M, int8 [rows]."""
    parts = []
    for linear in linears:
        pattern = pattern_of(linear.sparsity)
        assert pattern is not None
        zeros = pattern.of - pattern.keep
        parts.append(torch.full((linear.size,), zeros, dtype=torch.int8, device=device))
    return torch.cat(parts)


class _Scratch:
    """What the loop over the columns of a block needs, for all blocks of one shape.

    Taking a part of a tensor costs about as much as the arithmetic on one column, so every part is
    taken once.
    """

    def __init__(self, block: torch.Tensor, stride: int) -> None:
        width = len(block)
        self.errors = torch.empty_like(block)  # [width, rows]
        self.error_rows = self.errors.unbind()
        # 1 / U_jj for weights to remove, otherwise 0: so an error is one product, without a branch
        self.scale = torch.empty_like(block)  # [width, rows]
        self.scale_rows = self.scale.unbind()
        self.factor = block.new_empty(width, width)
        before = [slice(j // stride * stride, j) for j in range(width)]
        self.errors_before = [self.errors[part].t() for part in before]  # [rows, columns]
        self.factor_before = [self.factor[part, j] for j, part in enumerate(before)]  # [columns]


def _prune_block(
    block: torch.Tensor,
    factor: torch.Tensor,
    choose: Choose,
    of: int | None,
    scratch: _Scratch | None = None,
) -> torch.Tensor:
    """Prune a block of columns [width, rows] in place; return (w - q) / U_jj, [width, rows].

    ``of``: choose what to remove from that many columns when the sweep reaches them; None: from all
    at once, beforehand. The errors are in ``scratch``, if that fits.
    """
    width, group = len(block), of or STRIDE
    stride = max(1, STRIDE // group) * group
    if scratch is None or scratch.errors.shape != block.shape:
        scratch = _Scratch(block, group)
    errors = scratch.errors
    scratch.factor.copy_(factor)
    diagonal = factor.diagonal()
    inverse = diagonal.reciprocal()[:, None]  # [width, 1]
    gone = torch.zeros_like(block, dtype=torch.bool) if of else choose(block, diagonal)
    rows = block.unbind()
    if not of:
        _scale(gone, inverse, scratch.scale)
    # Level by level: a stride makes up for the columns before it in one matrix product, a group of
    # the stride for those before it in the stride, which are still in the caches, and a column for
    # those before it in its group.
    for start in range(0, width, stride):
        end = min(start + stride, width)
        _make_up(block, factor, errors, slice(0, start), slice(start, end))
        for first in range(start, end, group):
            part = slice(first, min(first + group, end))
            if of:
                _make_up(block, factor, errors, slice(start, first), part)
                gone[part] = choose(block[part], diagonal[part])
                _scale(gone[part], inverse[part], scratch.scale[part])
            for j in range(first, part.stop):
                if j > first:
                    # w_j -= sum over the columns k before j of U_kj * (w_k - q_k) / U_kk
                    rows[j].addmv_(scratch.errors_before[j], scratch.factor_before[j], alpha=-1)
                torch.mul(rows[j], scratch.scale_rows[j], out=scratch.error_rows[j])
    set_to_zero(block, gone)
    return errors


def _scale(gone: torch.Tensor, inverse: torch.Tensor, out: torch.Tensor) -> None:
    """Put ``inverse`` [some, 1] where ``gone`` is True into ``out``, otherwise 0; [some, rows]."""
    # As bytes: torch takes four times as long to make numbers of bool.
    out.copy_(gone.view(torch.int8)).mul_(inverse)


def _make_up(
    block: torch.Tensor, factor: torch.Tensor, errors: torch.Tensor, before: slice, part: slice
) -> None:
    """Let the columns ``part`` make up for the errors of those ``before``, if there are any."""
    if before.stop > before.start:
        block[part].addmm_(factor[before, part].t(), errors[before], alpha=-1)


def _decided(gone: torch.Tensor) -> Choose:
    return lambda _columns, _diagonal: gone


def _cost(columns: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """What removing each weight costs, w^2 / U_jj^2; columns [some, rows], diagonal [some]."""
    return columns.square() / diagonal.square()[:, None]


def _cheapest(linears: Sequence[Rows], threshold: bool) -> tuple[Choose, list[torch.Tensor]]:
    """Choose the cheapest share of each linear's weights, or N:M in every row of the columns.

    The list gets the highest cost of every choice by share: no order is right if one is not finite.
    """
    sizes = [linear.size for linear in linears]
    highest: list[torch.Tensor] = []

    def of_linear(cost: torch.Tensor, sparsity: float | str) -> torch.Tensor:
        pattern = pattern_of(sparsity)
        if pattern and threshold:
            gone = cost.topk(pattern.of - pattern.keep, dim=0, largest=False, sorted=False).indices
            return torch.zeros_like(cost, dtype=torch.bool).scatter_(0, gone, value=True)
        if pattern:
            return lowest(cost.t(), sparsity, group="row").t()
        if threshold:
            index = min(int(cost.numel() * float(sparsity)), cost.numel() - 1)
            return cost <= kth_lowest(cost.reshape(1, -1), index + 1)
        highest.append(cost.amax())  # of costs that are NaN the highest is NaN
        return lowest(cost, sparsity, group="matrix", finite=True)

    if len({linear.sparsity for linear in linears}) == 1 and pattern_of(linears[0].sparsity):
        # Every row chooses for itself, so all linears can choose at once.
        linears, sizes = linears[:1], [sum(sizes)]

    def choose(columns: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
        costs = torch.split(_cost(columns, diagonal), sizes, dim=1)
        masks = [
            of_linear(cost, linear.sparsity) for cost, linear in zip(costs, linears, strict=True)
        ]
        return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)

    return choose, highest


@hookimpl
def prunebench_register_method() -> type[Method]:
    return SparseGPT
