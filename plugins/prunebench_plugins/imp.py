"""Iterative magnitude pruning: prune a little, train, prune more (arXiv:1506.02626; rewinding: arXiv:1803.03635)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from prunebench import (
    Field,
    Method,
    Penalty,
    Reference,
    TrainingOptions,
    hookimpl,
    lowest,
    lowest_overall,
)

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
        title="Learning both Weights and Connections for Efficient Neural Networks",
        arxiv="1506.02626",
    )
    structure: ClassVar = frozenset({"unstructured"})
    needs_calibration = True
    uses_seed = True
    trains = True

    class Options(TrainingOptions):
        sparsity: float = Field(
            0.5, ge=0, lt=1, description="share of weights set to zero in the end"
        )
        rounds: int = Field(
            3, ge=1, description="each leaves (1 - sparsity)^(1 / rounds) of the survivors"
        )
        scope: Literal["layer", "global"] = Field(
            "layer", description="weights compete within a matrix, or all together"
        )
        min_density: float = Field(
            0.01,
            ge=0,
            lt=1,
            description="share of every matrix that stays, its largest; for the global scope",
        )
        after_round: Literal["finetune", "rewind", "none"] = Field(
            "finetune", description="what follows a pruning"
        )
        finetune_after: bool | None = Field(
            None, description="train after the last round; if null, where after_round is finetune"
        )
        penalty: Literal["l1", "l2"] | None = Field(
            None, description="train with it before pruning"
        )
        strength: float = Field(
            1e-5, ge=0, description="of the penalty: strength * sum |w|^p is added to the loss"
        )
        learning_rate: float = Field(1e-5, gt=0, description="peak of the schedule")

        def share(self, done: int) -> float:
            """The share of weights that is gone after ``done`` rounds, 1 - (1 - S)^(done / rounds)."""
            return (
                self.sparsity
                if done == self.rounds
                else 1 - (1 - self.sparsity) ** (done / self.rounds)
            )

    def prune(self, model: Any, context: Context) -> None:
        options = self.options
        weights = {
            f"{path}.weight": linear.weight for path, linear in context.linears(model).items()
        }
        penalty = None if options.penalty is None else Penalty(options.penalty, options.strength)
        rewind = options.after_round == "rewind"
        checkpoint = (
            {name: weight.detach().clone() for name, weight in weights.items()} if rewind else {}
        )
        masks = {
            name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()
        }
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
        if options.finetune_after or (
            options.finetune_after is None and options.after_round == "finetune"
        ):
            train(None)
        context.notes["shares"] = [options.share(done) for done in range(1, options.rounds + 1)]
        context.notes["trainings"] = trainings
        context.notes["trained_tokens"] = context.trained_tokens

    def _masks(self, weights: Mapping[str, torch.Tensor], gone: Masks, share: float) -> Masks:
        """The masks after a round: what is gone stays gone, and the smallest of the rest go up to ``share``."""
        held = {id(weight): gone[name] for name, weight in weights.items()}

        def score(weight: torch.Tensor) -> torch.Tensor:
            # what is gone lies below every magnitude, so that no survivor that happens to be zero is taken instead
            return weight.abs().float().masked_fill_(held[id(weight)], -1)

        if self.options.scope == "layer":
            return {
                name: lowest(score(weight), share, group="matrix")
                for name, weight in weights.items()
            }
        return dict(lowest_overall(weights, score, share, min_density=self.options.min_density))


@hookimpl
def prunebench_register_method() -> type[Method]:
    return IMP
