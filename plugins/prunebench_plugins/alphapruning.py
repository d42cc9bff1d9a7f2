"""AlphaPruning: heavier-tailed layers are better trained and keep more (arXiv:2410.10912)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch

import prunebench
from prunebench import (
    Allocation,
    Field,
    OnlyIf,
    PrunebenchError,
    Reference,
    hookimpl,
)
from prunebench_plugins.alphapruning_fit import (
    Fit,
    Metric,
    PowerLaw,
    eigenvalues,
    power_law,
    without_zeros,
)
from prunebench_plugins.divided_sparsity import capped, of_groups, of_layers, patterns, sizes_of

if TYPE_CHECKING:
    from prunebench import Context, LinearStats, Pattern, TensorCache

NEAR_ZERO = 0.00001
"""`EVALS_THRESH` of the released code: eigenvalues up to it are left out by `filter_zeros`."""

LARGEST_SHARE = 0.99
SMALL = 1 << 14
"""Weights of a matrix whose decomposition costs less than looking its hash up."""


class AlphaPruning(Allocation):
    """Remove less from layers whose weights have heavier tails in their spectrum.

    alpha is the exponent of a power law that is fitted to the eigenvalues of W^T W of each linear
    (Hill's estimate); a small one is a heavy tail, and a sign of good training. The alphas are
    mapped linearly to [1 - epsilon, 1 + epsilon] and scaled so that the mean over the weights is
    the sparsity (arXiv:2410.10912, section 3). With `mapping_type: block_wise` all linears of a
    decoder layer have the mean of its alphas. The tail begins where `metric` says: `alpha_peak`
    looks for the closest fit between 0.95 and 1.5 times the peak of the spectrum, `alpha_mid` takes
    the upper half, `alpha` the closest fit of all. Metrics of the package weightwatcher, which the
    released code also offers, are not among them.

    If a layer's share exceeds 0.99, it gets 0.99 and the others lose more in proportion, so that
    the mean stays exact. `mode: reference` does neither, only 1 is the most that a layer can lose;
    it compares eigenvalues with the base-10 logarithm of the lower bound of `alpha_peak`, so that
    the tail may begin far below the peak; and it adds logarithms up in float32. If all layers have
    the same alpha, all get the same sparsity. For N:M the shares are rounded to whole weights of a
    group.

    Singular values are remembered by the hash of the weights in prunebench's cache folder.
    """

    name = "alphapruning"
    reference = Reference(
        title="AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise"
        " Pruning of Large Language Models",
        arxiv="2410.10912",
        code="https://github.com/haiquanlu/AlphaPruning",
    )

    class Options(prunebench.Options):
        metric: Annotated[Metric, OnlyIf(epsilon=bool)] = Field(
            "alpha_peak",
            description="where the tail of a spectrum begins: near its peak, in its middle, or"
            " wherever a power law fits best",
        )
        mapping_type: Annotated[Literal["block_wise", "layer_wise"], OnlyIf(epsilon=bool)] = Field(
            "block_wise", description="one share for a decoder layer, or one for each linear"
        )
        epsilon: float = Field(
            0.3,
            ge=0,
            le=1,
            description="shares are between 1 - epsilon and 1 + epsilon times a common factor",
        )
        bins: Annotated[int, OnlyIf(metric="alpha_peak", epsilon=bool)] = Field(
            100, ge=1, le=10_000, description="bins of the histogram that shows the peak"
        )
        xmin_pos: Annotated[float, OnlyIf(metric="alpha_mid", epsilon=bool)] = Field(
            2.0, gt=1, description="leave out the smallest 1 / xmin_pos of the eigenvalues"
        )
        filter_zeros: Annotated[bool, OnlyIf(epsilon=bool)] = Field(
            default=False, description="leave out eigenvalues up to 0.00001"
        )
        mode: Annotated[Literal["clean", "reference"], OnlyIf(epsilon=bool)] = Field(
            "clean", description="bounds as in the paper and a limit of 0.99, or as released"
        )

    def shares(
        self, model: Any, sparsity: float, context: Context
    ) -> Sequence[float] | Mapping[str, float]:
        """Notes: ``alphas`` of each linear, and ``uncapped_shares`` if one was above the limit."""
        return self._divided(model, sparsity, LARGEST_SHARE, context)

    def keep(self, model: Any, pattern: Pattern, context: Context) -> dict[str, int]:
        """Notes: as `shares`."""
        # At least one weight of a group stays.
        shares = self._divided(model, pattern.sparsity, 1 - 1 / pattern.of, context)
        return patterns(model, shares, sizes_of(model, context), pattern)

    def _divided(
        self, model: Any, sparsity: float, highest: float, context: Context
    ) -> Sequence[float] | Mapping[str, float]:
        """The shares, of at most ``highest`` unless the sparsity itself is higher."""
        sizes = sizes_of(model, context)
        if not self.options.epsilon:
            return [sparsity] * len(context.kept_layers)
        alphas = self._alphas(model, context)
        context.notes["alphas"] = alphas
        block_wise = self.options.mapping_type == "block_wise"
        groups = of_layers(model, list(sizes)) if block_wise else [[path] for path in sizes]
        # A layer without linears has nothing to lose; any share will do.
        filled = [some for some in groups if some]
        means = [sum(alphas[path] for path in some) / len(some) for some in filled]
        counts = [sum(sizes[path] for path in some) for some in filled]
        found = scaled(means, counts, sparsity, self.options.epsilon)
        highest = 1.0 if self._released else max(highest, sparsity)
        if max(found) > highest:
            context.notes["uncapped_shares"] = (
                found if block_wise else dict(zip(sizes, found, strict=True))
            )
            found = (
                [min(one, highest) for one in found]
                if self._released
                else capped(found, counts, highest)
            )
        return (
            of_groups(groups, found, sparsity)
            if block_wise
            else dict(zip(sizes, found, strict=True))
        )

    @property
    def _released(self) -> bool:
        return bool(self.options.mode == "reference")

    def _alphas(self, model: Any, context: Context) -> dict[str, float]:
        """The exponent of each linear, by its path in forward order."""
        from prunebench import TensorCache  # imports torch, which planning does without

        found: dict[tuple[int, str], float] = {}
        cache = TensorCache("singular-values")

        def see(linears: Mapping[str, torch.nn.Linear], stats: Mapping[str, LinearStats]) -> None:
            for name, linear in linears.items():
                where = stats[name]
                law = self._law(linear.weight, f"layer {where.layer}, {name}", cache)
                found[where.layer, name] = law.alpha

        context.observe_linears(model, (), see)
        paths = context.linears(model)
        return dict(zip(paths, found.values(), strict=True))

    def _law(self, weight: torch.Tensor, where: str, cache: TensorCache) -> PowerLaw:
        """Raises PrunebenchError, naming the linear, if no power law fits its spectrum."""
        # The released code decomposes on the CPU; elsewhere the last digits differ.
        weight = weight.detach().cpu() if self._released else weight.detach()
        values = (
            cache.computed(weight, eigenvalues) if weight.numel() > SMALL else eigenvalues(weight)
        )
        kept = values
        if not self._released:
            kept = without_zeros(kept, weight.shape)
        if self.options.filter_zeros:
            kept = kept[kept > NEAR_ZERO]
            # The released code filters nothing if nothing would be left.
            kept = kept if len(kept) or not self._released else values
        if len(kept) < 2 or float(kept[0]) <= 0:
            zeros = len(values) - int((values > 0).sum()) if self._released else 0
            raise PrunebenchError(
                f"{where}: no power law fits the spectrum, because "
                + (
                    f"{zeros} of {len(values)} eigenvalues are zero"
                    if zeros
                    else f"{len(kept)} of {len(values)} eigenvalues are above zero"
                ),
                hint="the weights are constant, repeat each other or were pruned; use another"
                " allocation" + (", or `mode: clean`" if zeros and len(values) - zeros > 1 else ""),
            )
        options = self.options
        law = power_law(
            kept,
            Fit(cast("Metric", options.metric), options.bins, options.xmin_pos, self._released),
        )
        if not math.isfinite(law.alpha):
            raise PrunebenchError(
                f"{where}: no power law fits the spectrum, because all {len(kept)} eigenvalues in"
                " its tail are equal",
                hint="the weights are orthogonal or constant; use another allocation",
            )
        return law


def scaled(
    metrics: Sequence[float], sizes: Sequence[int], sparsity: float, epsilon: float
) -> list[float]:
    """The shares with this mean over the weights; the highest metric loses most.

    They may exceed 1. ``sizes``: the number of weights that each of ``metrics`` belongs to.
    """
    low, high = min(metrics), max(metrics)
    if low == high:
        return [sparsity] * len(metrics)
    ranks = [2 * epsilon * (one - low) / (high - low) + 1 - epsilon for one in metrics]
    weighted = sum(rank * size for rank, size in zip(ranks, sizes, strict=True))
    factor = sum(sizes) * sparsity / weighted
    return [rank * factor for rank in ranks]


@hookimpl
def prunebench_register_allocation() -> type[Allocation]:
    return AlphaPruning
