"""Iterative magnitude pruning: prune a little, train, prune more (arXiv:1506.02626; rewinding: arXiv:1803.03635)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from prunebench import Field, Method, Penalty, PrunebenchError, Reference, TrainingOptions, hookimpl, lowest

if TYPE_CHECKING:
    from prunebench import Context

Masks = dict[str, "torch.Tensor"]
"""True where a weight is gone, bool [out, in], by parameter path."""


class IMP(Method):
    """Prune the smallest |w| in rounds, each leaving the same share of the survivors, and train in between.

    `after_round=finetune` goes on from the trained values (Han et al. 2015). `rewind` trains before each pruning and then
    sets the survivors back to the checkpoint (the lottery ticket's procedure, with the checkpoint as initialisation).
    `none` trains in no round. A `penalty` is added to the loss of every training that a pruning follows. It trains on the
    calibration windows.
    """

    name = "imp"
    reference = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks", arxiv="1506.02626"
    )
    structure: ClassVar = frozenset({"unstructured"})
    needs_calibration = True
    uses_seed = True

    class Options(TrainingOptions):
        sparsity: float = Field(0.5, ge=0, lt=1, description="share of weights set to zero in the end")
        rounds: int = Field(3, ge=1, description="each leaves (1 - sparsity)^(1 / rounds) of the survivors")
        scope: Literal["layer", "global"] = Field(
            "layer", description="weights compete within a matrix, or all together"
        )
        min_density: float = Field(
            0.01, ge=0, lt=1, description="share of every matrix that stays, its largest; for the global scope"
        )
        after_round: Literal["finetune", "rewind", "none"] = Field("finetune", description="what follows a pruning")
        finetune_after: bool | None = Field(
            None, description="train after the last round; if null, where after_round is finetune"
        )
        penalty: Literal["l1", "l2"] | None = Field(None, description="train with it before pruning")
        strength: float = Field(1e-5, ge=0, description="of the penalty: strength * sum |w|^p is added to the loss")
        learning_rate: float = Field(1e-5, gt=0, description="peak of the schedule")

        def share(self, done: int) -> float:
            """The share of weights that is gone after ``done`` rounds, 1 - (1 - S)^(done / rounds)."""
            return self.sparsity if done == self.rounds else 1 - (1 - self.sparsity) ** (done / self.rounds)

    def prune(self, model: Any, context: Context) -> None:
        options = self.options
        weights = {f"{path}.weight": linear.weight for path, linear in context.linears(model).items()}
        penalty = None if options.penalty is None else Penalty(options.penalty, options.strength)
        rewind = options.after_round == "rewind"
        checkpoint = {name: weight.detach().clone() for name, weight in weights.items()} if rewind else {}
        masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        trainings: list[dict[str, Any]] = []

        def train(penalty: Penalty | None) -> None:
            log = context.train(model, weights, options, masks=masks, penalty=penalty)
            trainings.append(log.notes)

        for done in range(1, options.rounds + 1):
            if rewind or (done == 1 and penalty is not None):
                train(penalty)
            masks = self._masks(weights, masks, options.share(done))
            for name, weight in weights.items():
                if rewind:
                    weight.copy_(checkpoint[name])
                weight.masked_fill_(masks[name], 0)
            if options.after_round == "finetune" and done < options.rounds:
                train(penalty)
        if options.finetune_after or (options.finetune_after is None and options.after_round == "finetune"):
            train(None)
        context.notes["shares"] = [options.share(done) for done in range(1, options.rounds + 1)]
        context.notes["trainings"] = trainings
        context.notes["trained_tokens"] = context.trained_tokens

    def _masks(self, weights: Mapping[str, torch.Tensor], gone: Masks, share: float) -> Masks:
        """The masks after a round: what is gone stays gone, and the smallest of the rest go up to ``share``."""
        # below every magnitude, so that no survivor that happens to be zero is taken instead
        scores = ((name, weight.abs().float().masked_fill_(gone[name], -1)) for name, weight in weights.items())
        if self.options.scope == "layer":
            return {name: lowest(score, share, group="matrix") for name, score in scores}
        return self._global_masks(weights, gone, share)

    def _global_masks(self, weights: Mapping[str, torch.Tensor], gone: Masks, share: float) -> Masks:
        """Exactly int(n * share) of all n weights, ties by (matrix, index); never a matrix's `min_density` largest."""
        free = {name: self._free(weight, gone[name]) for name, weight in weights.items()}
        total = sum(weight.numel() for weight in weights.values())
        count = int(total * share) - sum(int(mask.sum()) for mask in gone.values())
        if count > sum(int(mask.sum()) for mask in free.values()):
            raise PrunebenchError(
                f"imp: a sparsity of {share:g} over all matrices leaves less than min_density of some",
                hint=f"ask for less than {1 - self.options.min_density:g}, or lower `min_density`",
            )
        masks = {name: mask.clone() for name, mask in gone.items()}
        if count <= 0:
            return masks
        limit, tied = _kth(weights, free, count)
        for name, weight in weights.items():
            bits = _bits(weight)
            ties = free[name] & (bits == limit)
            first = ties & (ties.flatten().cumsum(0).view_as(ties) <= tied)
            masks[name] |= (free[name] & (bits < limit)) | first
            tied -= int(first.sum())
        return masks

    def _free(self, weight: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
        """Which weights of a matrix may still go, bool [out, in]."""
        kept = math.ceil(self.options.min_density * weight.numel())
        largest = weight.abs().float().masked_fill_(gone, -1).flatten().topk(kept).indices
        return (~gone).flatten().index_fill_(0, largest, False).view_as(gone)


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """|w| as integers of the same order, int32 [out, in]: the bit patterns of non-negative floats are ordered."""
    return weight.detach().abs().float().view(torch.int32)


def _kth(weights: Mapping[str, torch.Tensor], free: Masks, count: int) -> tuple[int, int]:
    """The bits of the ``count``-th smallest free |w|, and how many that equal it are among the ``count`` smallest.

    Two passes of counting, over the upper and the lower half of the bits, one matrix at a time: no copy of all weights.
    """
    upper, rest = 0, count
    for low in (False, True):
        counts: Any = 0
        for name, weight in weights.items():
            bits = _bits(weight)[free[name]]
            keys = bits[bits >> 16 == upper] & 0xFFFF if low else bits >> 16
            counts = counts + torch.bincount(keys, minlength=1 << 16).cpu()
        place = int((counts.cumsum(0) < rest).sum())
        rest -= int(counts[:place].sum())
        upper = (upper << 16) + place if low else place
    return upper, rest


@hookimpl
def prunebench_register_method() -> type[Method]:
    return IMP
