"""OWL: layers with more outliers keep more of their weights (arXiv:2310.05175, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

import prunebench
from prunebench import AddedLater, Allocation, Field, OnlyIf, Reference, hookimpl
from prunebench_plugins.c4_text import C4

if TYPE_CHECKING:
    from prunebench import Context, LinearStats, Pattern

LEAST_DENSITY = 0.01
"""The share of its weights that a layer keeps if the formula leaves it nothing."""
LEAST_SPARSITY = 0.01
"""In the released code, what a layer loses if the formula takes nothing from it."""


class Uniform(Allocation):
    """Remove the same share from every layer, as without an allocation."""

    name = "uniform"

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:  # noqa: ARG002
        return [sparsity] * len(context.kept_layers)

    def keep(self, model: Any, pattern: Pattern, context: Context) -> list[int]:  # noqa: ARG002
        return [pattern.keep] * len(context.kept_layers)


class OWL(Allocation):
    """Remove less from layers with more outliers.

    An outlier is a Wanda score of the dense model above `threshold` times its layer's mean. With D
    the outliers' share of a layer, and r = 2 * spread * (D - min D) / (max D - min D), the layer's
    density is 1 - sparsity + r - mean r. So densities differ by up to 2 * spread, not evenly
    around their mean. If all layers have the same D, they get the same sparsity.

    For N:M the same is rounded to whole weights of a group: N + M * (r - mean r) of M stay. The
    published recipe for 3:8 is `threshold: 6`, `spread: 0.125` (their lambda of 2 is 2 of 8
    weights between the extremes).

    If the formula leaves a layer nothing, `mode=clean` keeps 1 % of it, or one weight of M. A
    sparsity of 0 or less becomes 0; `mode=reference` makes it 0.01 as in the released code, and
    there a layer may lose everything.
    """

    name = "owl"
    reference = Reference(
        title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to"
        " High Sparsity",
        arxiv="2310.05175",
        code="https://github.com/luuyin/OWL",
    )
    published_calibration: ClassVar = C4
    needs_calibration = True

    class Options(prunebench.Options):
        threshold: Annotated[float, OnlyIf(spread=bool)] = Field(
            5.0,
            gt=0,
            description="M: scores above this multiple of the mean are outliers (5 in the released"
            " recipes, 6 for N:M, 3 by default in their code)",
        )
        spread: float = Field(
            0.08, ge=0, le=0.5, description="lambda: sparsities differ by up to twice this number"
        )
        mode: Annotated[Literal["clean", "reference"], AddedLater(), OnlyIf(spread=bool)] = Field(
            "clean", description="limits of a layer's sparsity: 0 and 0.99, or as released"
        )

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        """Without a spread all layers get the same, whatever their outliers."""
        return bool(options.spread)

    def shares(self, model: Any, sparsity: float, context: Context) -> list[float]:
        """Notes: ``outliers``, the percentage of outliers in each layer."""
        found = [sparsity - more for more in self._densities(model, context)]
        if self.options.mode == "reference" and self.options.spread:
            return [LEAST_SPARSITY if one <= 0 else min(one, 1.0) for one in found]
        return [min(max(one, 0.0), 1 - LEAST_DENSITY) for one in found]

    def keep(self, model: Any, pattern: Pattern, context: Context) -> list[int]:
        """Notes: ``outliers``, the percentage of outliers in each layer."""
        # Halves are rounded to even numbers, as numpy does in the released code.
        found = [
            pattern.keep + round(pattern.of * more) for more in self._densities(model, context)
        ]
        least = 0 if self.options.mode == "reference" else 1
        return [min(max(one, least), pattern.of) for one in found]

    def _densities(self, model: Any, context: Context) -> list[float]:
        """By how much each layer is denser than the mean."""
        if not self.options.spread:
            return [0.0] * len(context.kept_layers)
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
        return spread(outliers, self.options.spread)


def spread(outliers: Sequence[float], width: float) -> list[float]:
    """By how much each layer is denser than the mean: by its outliers, in a range of 2 * width."""
    low, high = min(outliers), max(outliers)
    if high == low:
        return [0.0] * len(outliers)
    ranks = [2 * width * (one - low) / (high - low) for one in outliers]
    mean = sum(ranks) / len(ranks)
    return [rank - mean for rank in ranks]


@hookimpl
def prunebench_register_allocation() -> list[type[Allocation]]:
    return [Uniform, OWL]
