"""ECoFLaP: matrices on which the loss depends more keep more weights (arXiv:2310.02998)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch

import prunebench
from prunebench import Allocation, Field, OnlyIf, PrunebenchError, Reference, hookimpl
from prunebench_plugins.c4_text import C4
from prunebench_plugins.divided_sparsity import of_groups, of_layers, patterns, sizes_of
from prunebench_plugins.ecoflap_budget import distribute, distribute_as_released
from prunebench_plugins.ecoflap_scores import (
    Noise,
    Score,
    check_scores,
    first_order,
    noise_seeds,
    with_magnitude,
    zeroth_order,
)

if TYPE_CHECKING:
    from prunebench import Context, Pattern

ZEROTH_SAMPLES, FIRST_SAMPLES = 32, 128
"""Windows for the scores in the released scripts for LLaMA."""
ABOVE = 0.1
"""The limit of a layer's sparsity is this much above the mean in the paper's experiments."""
LARGEST_SHARE = 0.99
"""Unless somebody asks for it, no layer loses everything."""


class ECoFLaP(Allocation):
    """Remove less from decoder layers on which the loss depends more, then prune in each linear.

    This is the coarse stage of the paper's two (section 3); the method is the fine one. With
    `use_mezo` a matrix's score is |L(W + eps z) - L(W - eps z)| / (2 eps) for noise z ~ N(0, I),
    summed over windows: zeroth order, no backward pass. Its expectation grows with the size of the
    matrix, about as the norm of its gradient does. Otherwise it is the sum of |dL/dW|, mean over
    windows: first order. `score_method` can weigh either with the weights. The noise has the
    seeds that numpy's RandomState gives for the cell's seed, by matrix, then by window.

    The weights that stay are distributed in proportion to the scores, with
    `max_sparsity_per_layer` as the limit, and exactly int(n * (1 - sparsity)) of them in all. For
    N:M the shares are rounded to whole weights of a group.

    `mode: reference` repeats the released code: it distributes in float32 and keeps a few weights
    too many, since it adds where it should take away; `num_noise` draws use up the number of
    samples, so that they come from fewer windows; and losses come from the whole vocabulary head.
    The default computes a close bound of them (see `lower_bound`), which gives nearly the same
    scores (on SmolLM2 within 0.3 %, 0.01 % of a layer) for a small part of the cost. Weights are
    restored exactly in both.

    The search by pruning the whole model three times (`Real` in the released code) is left out.
    """

    name = "ecoflap"
    reference = Reference(
        title="ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
        arxiv="2310.02998",
        code="https://github.com/ylsung/ECoFLaP",
    )
    published_calibration: ClassVar = C4
    needs_calibration = True
    uses_seed = True

    class Options(prunebench.Options):
        use_mezo: bool = Field(
            default=True, description="scores of zeroth order, from two losses; or from gradients"
        )
        score_method: Literal["GradOnly", "GradMagAbs", "GradMagSquare"] = Field(
            "GradOnly", description="the score of a weight: |g|, |w| |g| or w^2 g^2"
        )
        aggregate_method: Literal["sum", "avg"] = Field(
            "sum", description="the score of a group: the sum over its weights, or their mean"
        )
        approach_for_sparsity: Literal["block", "layer"] = Field(
            "block", description="one share for a decoder layer, or one for each linear"
        )
        max_sparsity_per_layer: float | None = Field(
            None,
            gt=0,
            le=1,
            description="limit of a share; by default the sparsity + 0.1, and 0.99 at most",
        )
        num_samples: int | None = Field(
            None,
            gt=0,
            description="calibration windows for the scores, the first ones; by default at most 32"
            " with use_mezo and 128 without",
        )
        num_noise: Annotated[int, OnlyIf(use_mezo=True)] = Field(
            1, gt=0, le=1000, description="noise vectors for each matrix and window"
        )
        noise_eps: Annotated[float, OnlyIf(use_mezo=True)] = Field(
            1e-3, gt=0, le=1, description="standard deviation of the noise"
        )
        mode: Literal["clean", "reference"] = Field(
            "clean", description="exact budget and cheap losses, or as released"
        )

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        return bool(options.use_mezo)

    @classmethod
    def refuses_streaming(cls, options: Any) -> str | None:
        del options
        return "its scores take passes of the whole model"

    def shares(
        self, model: Any, sparsity: float, context: Context
    ) -> Sequence[float] | Mapping[str, float]:
        """Notes: ``scores`` of each linear, and ``score_windows``, how many windows they took."""
        most = self.options.max_sparsity_per_layer
        if most is None:
            most = max(sparsity, min(LARGEST_SHARE, sparsity + ABOVE))
        return self._divided(model, sparsity, most, context)

    def keep(self, model: Any, pattern: Pattern, context: Context) -> dict[str, int]:
        """Notes: as `shares`."""
        most = self.options.max_sparsity_per_layer
        most = pattern.sparsity + ABOVE if most is None else most
        # At least one weight of a group stays.
        most = max(pattern.sparsity, min(most, 1 - 1 / pattern.of))
        shares = self._divided(model, pattern.sparsity, most, context)
        return patterns(model, shares, sizes_of(model, context), pattern)

    @property
    def _released(self) -> bool:
        return bool(self.options.mode == "reference")

    def _divided(
        self, model: Any, sparsity: float, most: float, context: Context
    ) -> list[float] | dict[str, float]:
        """The shares, of at most ``most``."""
        if most < sparsity:
            raise PrunebenchError(
                f"max_sparsity_per_layer {most:g} is below the sparsity {sparsity:g}, so no shares"
                " have it as their mean",
                hint=f"set it to {sparsity:g} or more, or leave it out",
            )
        sizes = sizes_of(model, context)
        scores = self._scores(model, context)
        check_scores(scores)
        context.notes["scores"] = scores
        block = self.options.approach_for_sparsity == "block"
        groups = of_layers(model, list(sizes)) if block else [[path] for path in sizes]
        filled = [group for group in groups if group]
        counts = [sum(sizes[path] for path in group) for group in filled]
        spread = distribute_as_released if self._released else distribute
        found = spread(self._of_groups(scores, filled, counts), counts, sparsity, most)
        # A layer without linears has nothing to lose; any share will do.
        return of_groups(groups, found, sparsity) if block else dict(zip(sizes, found, strict=True))

    def _of_groups(
        self, scores: Mapping[str, float], groups: list[list[str]], counts: list[int]
    ) -> list[float]:
        """The score of each group, added up in float32 as in the released code."""
        found = []
        for group, count in zip(groups, counts, strict=True):
            total = torch.zeros((), dtype=torch.float32)
            for path in group:
                total += scores[path]
            found.append(float(total / count if self.options.aggregate_method == "avg" else total))
        return found

    def _scores(self, model: Any, context: Context) -> dict[str, float]:
        """The score of each linear, by its path."""
        options = self.options
        windows = self._windows(context)
        context.notes["score_windows"] = len(windows)
        score = cast("Score", options.score_method)
        linears = context.linears(model)
        if not options.use_mezo:
            return first_order(model, linears, windows, score, context.progress)
        layers = dict(enumerate(of_layers(model, list(linears))))
        draws = len(windows) * options.num_noise
        if self._released:
            draws = self._samples(context)
        seeds = noise_seeds(context.seed, len(linears), draws)
        slopes = zeroth_order(
            model,
            context,
            {index: {path: linears[path] for path in some} for index, some in layers.items()},
            windows,
            dict(zip(linears, seeds, strict=True)),
            Noise(options.noise_eps, options.num_noise, self._released),
        )
        return {
            path: with_magnitude(slope, linears[path].weight, score)
            for path, slope in slopes.items()
        }

    def _samples(self, context: Context) -> int:
        """How many windows the options ask for. Raises PrunebenchError if there are fewer."""
        asked, there = self.options.num_samples, len(context.windows)
        if asked is None:
            return min(there, ZEROTH_SAMPLES if self.options.use_mezo else FIRST_SAMPLES)
        if asked > there:
            raise PrunebenchError(
                f"num_samples is {asked}, and the calibration has {there} windows",
                hint="lower `num_samples`, or raise `windows` in `calibration`",
            )
        return int(asked)

    def _windows(self, context: Context) -> torch.Tensor:
        """The windows that are scored, int64 [windows, length]."""
        samples = self._samples(context)
        if self._released and self.options.use_mezo:
            # A draw counts as a sample, so several from one window leave others out.
            samples = -(-samples // self.options.num_noise)
        return context.windows[:samples]


@hookimpl
def prunebench_register_allocation() -> type[Allocation]:
    return ECoFLaP
