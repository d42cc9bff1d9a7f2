"""Iterative magnitude pruning: prune a little, train, prune more.

arXiv:1506.02626, section 3; rewinding: arXiv:1803.03635.
"""

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
"""True for removed weights, bool [out, in], by parameter path."""


class IMP(Method):
    """Remove the smallest |w| in rounds and train on the calibration windows in between.

    Every round keeps the same share of the survivors. `after_round=finetune` continues from the
    trained values (Han et al. 2015). `rewind` trains before each pruning and then resets the
    survivors to the checkpoint (the procedure of the lottery ticket hypothesis, with the
    checkpoint as the initialisation). `none` never trains between rounds. A `penalty` is added to
    the loss of every training that is followed by a pruning.
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
            0.5, ge=0, lt=1, description="share of weights that is zero after the last round"
        )
        rounds: int = Field(
            3, ge=1, description="each keeps (1 - sparsity)^(1 / rounds) of the survivors"
        )
        scope: Literal["layer", "global"] = Field(
            "layer", description="weights compete within their matrix, or across the whole model"
        )
        min_density: float = Field(
            0.01,
            ge=0,
            lt=1,
            description="share of its weights that every matrix keeps at least; for scope global",
        )
        after_round: Literal["finetune", "rewind", "none"] = Field(
            "finetune", description="what follows each pruning"
        )
        finetune_after: bool | None = Field(
            None, description="train after the last round; null: only if after_round is finetune"
        )
        penalty: Literal["l1", "l2"] | None = Field(
            None, description="regularisation while training before a pruning"
        )
        strength: float = Field(
            1e-5, ge=0, description="of the penalty: the loss gets strength * sum |w|^p"
        )
        learning_rate: float = Field(1e-5, gt=0, description="peak of the learning-rate schedule")

        def share(self, done: int) -> float:
            """The share of weights that ``done`` rounds remove, 1 - (1 - S)^(done / rounds)."""
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
            # With finetune, the training after a round is the one before the next; only the first
            # round has none, and needs it if a penalty shall push weights to zero.
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
        """The masks after a round: the ones before it, and the smallest other weights."""
        held = {id(weight): gone[name] for name, weight in weights.items()}

        def score(weight: torch.Tensor) -> torch.Tensor:
            # Removed weights score below all others, so they are removed again even if a survivor
            # happens to be zero.
            return weight.abs().float().masked_fill_(held[id(weight)], -1)

        if self.options.scope == "layer":  # exact in every matrix, otherwise in the whole model
            return {
                name: lowest(score(weight), share, group="matrix")
                for name, weight in weights.items()
            }
        return dict(lowest_overall(weights, score, share, min_density=self.options.min_density))


@hookimpl
def prunebench_register_method() -> type[Method]:
    return IMP
