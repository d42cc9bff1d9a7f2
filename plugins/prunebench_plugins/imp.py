"""Iterative magnitude pruning: prune a little, train, prune more.

arXiv:1506.02626, section 3; rewinding: arXiv:1803.03635, to a later step: arXiv:1912.05671.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from prunebench import (
    AddedLater,
    Field,
    Method,
    NoEffect,
    OnlyIf,
    Penalty,
    PrunebenchError,
    Reference,
    TrainingOptions,
    hookimpl,
    lowest,
    lowest_overall,
    set_to_zero,
)

if TYPE_CHECKING:
    from prunebench import Context

Masks = dict[str, "torch.Tensor"]
"""True for removed weights, bool [out, in], by parameter path."""
Weights = Mapping[str, "torch.Tensor"]
"""Prunable weights, [out, in], by parameter path."""


class IMP(Method):
    """Remove the smallest |w| in rounds and train on the calibration windows in between.

    Every round keeps the same share of the survivors. With `quality`, it removes instead the
    survivors below quality * (standard deviation of the survivors of their matrix), as Han et al.
    do. `after_round=finetune` continues from the trained values (Han et al. 2015). `rewind` trains
    before each pruning and then resets the survivors to the checkpoint (the lottery ticket
    procedure, with the checkpoint as the initialisation), or to their values after `rewind_step`
    training steps; at the end the ticket is trained. `none` never trains between rounds. A
    `penalty` is added to the loss of every training that is followed by a pruning.
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
        sparsity: Annotated[float, OnlyIf(quality=None)] = Field(
            0.5, ge=0, lt=1, description="share of weights that is zero after the last round"
        )
        rounds: int = Field(
            3, ge=1, description="each keeps (1 - sparsity)^(1 / rounds) of the survivors"
        )
        scope: Annotated[Literal["layer", "global"], OnlyIf(quality=None)] = Field(
            "layer", description="weights compete within their matrix, or across the whole model"
        )
        min_density: Annotated[float, OnlyIf(scope="global")] = Field(
            0.01,
            ge=0,
            lt=1,
            description="share of its weights that every matrix keeps at least; for scope global",
        )
        after_round: Literal["finetune", "rewind", "none"] = Field(
            "finetune", description="what follows each pruning"
        )
        finetune_after: bool | None = Field(
            None, description="train after the last round; null: unless after_round is none"
        )
        penalty: Literal["l1", "l2"] | None = Field(
            None, description="regularisation while training before a pruning"
        )
        strength: Annotated[float, OnlyIf(penalty=("l1", "l2"))] = Field(
            1e-5, ge=0, description="of the penalty: the loss gets strength * sum |w|^p"
        )
        learning_rate: float = Field(1e-5, gt=0, description="peak of the learning-rate schedule")
        quality: Annotated[float | None, AddedLater()] = Field(
            None,
            gt=0,
            description="Han et al.'s quality parameter: every round removes the weights below"
            " quality * standard deviation of their matrix; null: `sparsity` decides",
        )
        rewind_step: Annotated[int, AddedLater(), OnlyIf(after_round="rewind")] = Field(
            0, ge=0, description="rewind to the weights after this many training steps"
        )

        @model_validator(mode="before")
        @classmethod
        def _ticket_is_trained(cls, data: Any) -> Any:
            # Written out, so that the ids of these cells differ from those of the time when null
            # left the rewound weights as they were.
            if isinstance(data, dict) and data.get("after_round") == "rewind":
                after = data.get("finetune_after")
                return {**data, "finetune_after": True if after is None else after}
            return data

        @model_validator(mode="after")
        def _rewinds_within_the_training(self) -> Self:
            if self.max_steps is not None and self.rewind_step >= self.max_steps:
                raise ValueError("`rewind_step` must be less than `max_steps`")
            return self

        def share(self, done: int) -> float:
            """The share of weights that ``done`` rounds remove, 1 - (1 - S)^(done / rounds)."""
            return (
                self.sparsity
                if done == self.rounds
                else 1 - (1 - self.sparsity) ** (done / self.rounds)
            )

        @property
        def trains_at_the_end(self) -> bool:
            if self.finetune_after is None:
                return self.after_round != "none"
            return self.finetune_after

        @property
        def trains(self) -> bool:
            """Whether there is any training."""
            between = self.after_round == "finetune" and self.rounds > 1
            before = self.after_round == "rewind" or self.penalty is not None
            return between or before or self.trains_at_the_end

        def without_effect(self) -> dict[str, NoEffect]:
            found = super().without_effect()
            if not self.trains:
                reason = NoEffect(f"after_round: {self.after_round}", "after_round: finetune")
                found |= dict.fromkeys(TrainingOptions.model_fields, reason)
            return found

    @classmethod
    def needs_calibration_for(cls, options: Any) -> bool:
        return bool(options.trains)

    @classmethod
    def uses_seed_for(cls, options: Any) -> bool:
        return bool(options.trains)

    def prune(self, model: Any, context: Context) -> None:
        options = self.options
        weights = {
            f"{path}.weight": linear.weight for path, linear in context.linears(model).items()
        }
        penalty = None if options.penalty is None else Penalty(options.penalty, options.strength)
        rewind = options.after_round == "rewind"
        after_rewinding = self._steps(context) if rewind else None
        masks = {
            name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()
        }
        trainings: list[dict[str, Any]] = []
        shares: list[float] = []

        def train(penalty: Penalty | None, part: range | None = after_rewinding) -> None:
            log = context.train(model, weights, options, masks=masks, penalty=penalty, part=part)
            trainings.append(log.notes)

        if options.rewind_step:
            train(penalty, range(options.rewind_step))
        start = (
            {name: weight.detach().clone() for name, weight in weights.items()} if rewind else {}
        )
        for done in range(1, options.rounds + 1):
            # With finetune, the training after a round is the one before the next; only the first
            # round has none, and needs it if a penalty shall push weights to zero.
            if rewind or (done == 1 and penalty is not None):
                train(penalty)
            masks = self._masks(weights, masks, options.share(done))
            shares.append(_share(masks))
            for name, weight in weights.items():
                if rewind:
                    weight.copy_(start[name])
                set_to_zero(weight, masks[name])
            if options.after_round == "finetune" and done < options.rounds:
                train(penalty)
        if options.trains_at_the_end:
            train(None)
        context.notes["shares"] = shares
        context.notes["trainings"] = trainings
        context.notes["trained_tokens"] = context.trained_tokens

    def _steps(self, context: Context) -> range:
        """The optimiser steps from the one that survivors are rewound to."""
        windows = len(context.windows)
        total = self.options.steps(windows - self.options.held_out(windows))
        if self.options.rewind_step >= total:
            raise PrunebenchError(
                f"imp: there is no training after step {self.options.rewind_step}, because all"
                f" windows take {total} optimiser steps",
                hint="lower `rewind_step` or `batch_size`, or raise `epochs`",
            )
        return range(self.options.rewind_step, total)

    def _masks(self, weights: Weights, gone: Masks, share: float) -> Masks:
        """The masks after a round: the ones before it, and the smallest other weights."""
        if self.options.quality is not None:
            return {
                name: _below_deviation(name, weight, gone[name], self.options.quality)
                for name, weight in weights.items()
            }
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


def _below_deviation(
    name: str, weight: torch.Tensor, gone: torch.Tensor, quality: float
) -> torch.Tensor:
    """``gone`` and the survivors with |w| < quality * (their standard deviation), bool [out, in]."""
    survivors = weight[~gone].float()
    threshold = quality * survivors.std(correction=0)
    mask = gone | (weight.abs().float() < threshold)
    if bool(mask.all()):
        raise PrunebenchError(
            f"imp: {name}: a quality parameter of {quality:g} removes all weights",
            hint="lower `quality` or `rounds`",
        )
    return mask


def _share(masks: Masks) -> float:
    """The share of all weights that is removed."""
    removed = sum(int(mask.sum()) for mask in masks.values())
    return removed / sum(mask.numel() for mask in masks.values())


@hookimpl
def prunebench_register_method() -> type[Method]:
    return IMP
