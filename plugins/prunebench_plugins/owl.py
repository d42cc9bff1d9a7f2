"""OWL: layers with more outliers keep more of their weights (arXiv:2310.05175, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch

import prunebench
from prunebench import Allocation, Field, OnlyIf, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

LEAST_DENSITY = 0.01
"""The share of its weights that a layer keeps if the formula leaves it nothing."""


class Uniform(Allocation):
    """Remove the same share from every layer, as without an allocation."""

    name = "uniform"

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:  # noqa: ARG002
        return [sparsity] * len(context.kept_layers)


class OWL(Allocation):
    """Remove less from layers with more outliers.

    An outlier is a Wanda score of the dense model above `threshold` times its layer's mean. With D
    the outliers' share of a layer, and r = 2 * spread * (D - min D) / (max D - min D), the layer's
    density is 1 - sparsity + r - mean r. So densities differ by up to 2 * spread, not evenly
    around their mean. If all layers have the same D, they get the same sparsity.
    """

    name = "owl"
    reference = Reference(
        title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to"
        " High Sparsity",
        arxiv="2310.05175",
        code="https://github.com/luuyin/OWL",
    )
    needs_calibration = True

    class Options(prunebench.Options):
        threshold: Annotated[float, OnlyIf(spread=bool)] = Field(
            5.0,
            gt=0,
            description="M: scores above this multiple of the mean are outliers (5 in the released"
            " recipes, 3 by default in their code)",
        )
        spread: float = Field(
            0.08, ge=0, le=0.5, description="lambda: sparsities differ by up to twice this number"
        )

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Without a spread all layers get the same, whatever their outliers."""
        return bool(options.spread)

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:
        """Notes: ``outliers``, the percentage of outliers in each layer."""
        if not self.options.spread:
            return [sparsity] * len(context.kept_layers)
        outliers: list[float] = []

        def see(linears: Mapping[str, torch.nn.Linear], stats: Mapping[str, LinearStats]) -> None:
            # All linears of a layer share one mean, so they are scored together: [weights]
            scores = torch.cat(
                [
                    (linear.weight.abs().float() * stats[name].input_norm).flatten()
                    for name, linear in linears.items()
                ]
            )
            outliers.append(
                100 * float((scores > self.options.threshold * scores.mean()).float().mean())
            )

        context.observe_linears(model, {"input_norm"}, see)
        context.notes["outliers"] = outliers
        return spread(outliers, sparsity, self.options.spread)


def spread(outliers: Sequence[float], sparsity: float, width: float) -> list[float]:
    """The sparsity of each layer; their mean is ``sparsity`` unless one is cut to [0, 0.99]."""
    low, high = min(outliers), max(outliers)
    if high == low:
        return [sparsity] * len(outliers)
    # A layer keeps more by its rank, 0 to 2 * width; the mean rank is taken out of all of them.
    ranks = [2 * width * (one - low) / (high - low) for one in outliers]
    mean = sum(ranks) / len(ranks)
    return [min(max(sparsity + mean - rank, 0.0), 1 - LEAST_DENSITY) for rank in ranks]


@hookimpl
def prunebench_register_allocation() -> list[type[Allocation]]:
    return [Uniform, OWL]
