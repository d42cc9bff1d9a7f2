"""RIA: remove weights that matter little to their row and to their column (Zhang et al. 2024).

Y. Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024, equations 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from prunebench import (
    Field,
    LayerwiseOptions,
    LinearMethod,
    Method,
    OnlyIf,
    Pattern,
    Reference,
    hookimpl,
    is_share,
    kth_lowest,
    lowest,
    pattern_of,
)
from prunebench_plugins.c4_text import C4
from prunebench_plugins.ria_permutation import Importance, improved, reallocated
from prunebench_plugins.sparsegpt import SparseGPT

if TYPE_CHECKING:
    from prunebench import Context, LinearStats

BLOCKS = {"q_proj": 4, "k_proj": 4, "v_proj": 4, "o_proj": 4, "up_proj": 8, "gate_proj": 8}
"""Blocks of channels that `fast` assigns separately, by the linear's name, as released."""
OTHER_BLOCKS = 16


def _is_pattern(sparsity: float | str) -> bool:
    return not is_share(sparsity)


class RIA(LinearMethod):
    """Remove the smallest relative importance times input norm of every matrix, or N:M group.

    The score of a weight is (|w| / sum of its column + |w| / sum of its row) * ||x||^a. With a = 0
    it is relative importance alone (`ri` in the released code) and needs no text. All weights of a
    matrix compete, or those of a row with `per_outneuron`. `mode=clean` removes exactly
    int(n * sparsity) weights, ties by index; `mode=reference` follows the released code: every
    weight whose score is at most the sorted score at that index, so at least one more.

    With `reallocation`, the inputs of a linear are permuted before its N:M groups are chosen, so
    that important ones do not meet in one group; `lsa` then improves the permutation by linear sum
    assignments. The weights stay where they are, as in the released code. So a stored row breaks
    the pattern, and the audit counts that: it holds after the inputs are permuted, which costs a
    gather at run time.
    """

    name = "ria"
    reference = Reference(
        title="Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
        code="https://github.com/biomedical-cybernetics/Relative-importance-and-activation-pruning",
    )
    published_calibration: ClassVar = C4
    statistics: ClassVar = frozenset({"input_norm"})

    class Options(LayerwiseOptions):
        a: float = Field(
            0.5, ge=0, description="power of the input norm in the score; 0 leaves it out"
        )
        per_outneuron: Annotated[bool, OnlyIf(sparsity=is_share)] = Field(
            default=False, description="weights compete within their row instead of their matrix"
        )
        reconstruction: bool = Field(
            default=False,
            description="update the weights that stay as SparseGPT does, under the mask of RIA",
        )
        reallocation: Annotated[bool, OnlyIf(sparsity=_is_pattern)] = Field(
            default=False,
            description="permute input channels before N:M, so that each group has strong and weak"
            " ones",
        )
        importance_score: Annotated[Importance, OnlyIf(reallocation=True)] = Field(
            "sum",
            description="what channels are sorted by: the sum of their scores, or the sum of those"
            " that pruning by matrix (unstructured) or by row (per_outneuron) would keep",
        )
        lsa: Annotated[bool, OnlyIf(reallocation=True)] = Field(
            default=False, description="improve the permutation by linear sum assignment"
        )
        fast: Annotated[bool, OnlyIf(lsa=True)] = Field(
            default=False,
            description="assign within 4 blocks of channels in attentions, 8 in front of an MLP and"
            " 16 elsewhere",
        )
        mode: Annotated[Literal["clean", "reference"], OnlyIf(sparsity=is_share)] = Field(
            "clean", description="exact count, or the threshold of the released code"
        )

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        wanted = {"input_norm"} if options.a else set()
        if options.reconstruction:
            wanted.add("hessian")
        # What to gather depends on the options; the class has what the defaults need.
        self.statistics = frozenset(wanted)  # type: ignore[misc]
        self.updates = SparseGPT(SparseGPT.Options(sparsity=options.sparsity))
        self.retained: list[list[float]] = []

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        return bool(options.a or options.reconstruction)

    def prune(self, model: Any, context: Context) -> None:
        """Notes: ``retained_score`` and ``stored_order`` if channels are permuted.

        The first is the sum of the scores that stay, with and without the permutation, as a share
        of all scores; mean over linears. ``damping_raised`` and ``not_compiled`` are as in
        `sparsegpt`.
        """
        super().prune(model, context)
        if self.retained:
            plain, permuted = torch.tensor(self.retained).mean(dim=0).tolist()
            context.notes["retained_score"] = {"plain": plain, "permuted": permuted}
            context.notes["stored_order"] = (
                "N:M holds once each linear's inputs are permuted; as stored, rows break it"
            )
        context.notes |= self.updates.remarks()

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        # NaN is 0 / 0: all weights of a row or column are zero.
        return self._score(weight, stats).nan_to_num_(nan=0.0)

    def _score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        size = weight.abs().float()
        relative = size / size.sum(dim=0) + size / size.sum(dim=1, keepdim=True)  # [out, in]
        return relative * stats.input_norm**self.options.a if self.options.a else relative

    def mask(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        sparsity = self.sparsity_of(stats)
        pattern = pattern_of(sparsity)
        if pattern is not None and self.options.reallocation:
            return self._permuted_mask(self.score(weight, stats), pattern, stats)
        group: Literal["row", "matrix"] = "row" if self.options.per_outneuron else "matrix"
        if pattern is not None or self.options.mode == "clean" or group == "row":
            return lowest(self.score(weight, stats), sparsity, group=group)
        # The released code indexes the sorted scores with the count: one weight more than asked.
        # NaN counts as the highest score there.
        score = self._score(weight, stats)
        index = min(int(score.numel() * float(sparsity)), score.numel() - 1)
        return score <= kth_lowest(score.reshape(1, -1), index + 1)

    def _permuted_mask(
        self, score: torch.Tensor, pattern: Pattern, stats: LinearStats
    ) -> torch.Tensor:
        plain = lowest(score, str(pattern), group="row")  # refuses an M that does not divide
        index = reallocated(score, pattern, self.options.importance_score)
        if self.options.lsa:
            blocks = BLOCKS.get(stats.name.rpartition(".")[2], OTHER_BLOCKS)
            index = improved(score, index, pattern, blocks if self.options.fast else 1)
        mask = torch.empty_like(plain)
        mask[:, index] = lowest(score[:, index], str(pattern), group="row")
        total = float(score.sum()) or 1.0
        self.retained.append([1 - float(score[gone].sum()) / total for gone in (plain, mask)])
        return mask

    def prune_group(self, weights: Sequence[torch.Tensor], stats: Sequence[LinearStats]) -> None:
        if not self.options.reconstruction:
            super().prune_group(weights, stats)
            return
        masks = []
        for weight, each in zip(weights, stats, strict=True):
            with each.naming():
                masks.append(self.mask(weight, each))
        # All linears share the Hessian, and one sweep updates them: [in, rows of all]
        self.updates.prune_group(weights, stats, torch.cat([mask.t() for mask in masks], dim=1))


@hookimpl
def prunebench_register_method() -> type[Method]:
    return RIA
