"""OWL: layers with more outliers keep more of their weights (arXiv:2310.05175, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

import prunebench
from prunebench import Allocation, Field, Reference, hookimpl

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

LEAST_DENSITY = 0.01
"""What a layer keeps where the formula leaves it nothing."""


class Uniform(Allocation):
    """The same share from every layer, as without an allocation."""

    name = "uniform"

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:  # noqa: ARG002
        return [sparsity] * len(context.kept_layers)


class OWL(Allocation):
    """Spread the share by each layer's outliers: Wanda scores of the dense model above `threshold` times the layer's mean.

    With D the outliers' share, density = 1 - sparsity + 2 * spread * ((D - min D) / (max D - min D) - mean of that): layers
    lie within 2 * spread of each other, not evenly around the mean. Layers that are all alike get the same share.
    """

    name = "owl"
    reference = Reference(
        title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
        arxiv="2310.05175",
        code="https://github.com/luuyin/OWL",
    )
    needs_calibration = True

    class Options(prunebench.Options):
        threshold: float = Field(
            5.0,
            gt=0,
            description="M: a score is an outlier above so many times the mean (5 in the recipes, 3 in the code)",
        )
        spread: float = Field(
            0.08, ge=0, le=0.5, description="lambda: shares differ by up to twice as much"
        )

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:
        """Notes: ``outliers``, the share of outliers of each layer in per cent."""
        outliers: list[float] = []

        def see(linears: Mapping[str, torch.nn.Linear], stats: Mapping[str, LinearStats]) -> None:
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
    """The share of each layer: their mean is ``sparsity``, except where one would leave [0, 1 - 0.01] and is cut off."""
    low, high = min(outliers), max(outliers)
    if high == low:
        return [sparsity] * len(outliers)
    ranks = [2 * width * (one - low) / (high - low) for one in outliers]
    mean = sum(ranks) / len(ranks)
    return [min(max(sparsity + mean - rank, 0.0), 1 - LEAST_DENSITY) for rank in ranks]


@hookimpl
def prunebench_register_allocation() -> list[type[Allocation]]:
    return [Uniform, OWL]
