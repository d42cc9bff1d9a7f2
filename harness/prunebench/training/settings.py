"""Training settings: learning rate, schedule, batches. Nothing here imports torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prunebench.schema import AddedLater, Frozen

WARMUP_SHARE = 0.1
"""Warm-up takes at most this share of all steps: with few windows there are few steps."""


class TrainingSettings(Frozen):
    """Next-token training with AdamW; the windows are shuffled again in each epoch."""

    learning_rate: float = Field(1e-4, gt=0, description="peak of the learning-rate schedule")
    epochs: int = Field(1, ge=1, description="passes over the training windows")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(8, ge=1, description="windows per optimiser step")
    micro_batch_size: int = Field(
        4, ge=1, description="windows in one forward pass; its size changes no result"
    )
    warmup_steps: int = Field(
        0, ge=0, description="linear warm-up; never more than a tenth of all steps"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW (decoupled)")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="learning rate after the warm-up"
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="gradients are clipped to this L2 norm; null: not clipped"
    )

    val_windows: Annotated[int | None, AddedLater()] = Field(
        None,
        ge=1,
        description="hold out this many of the windows for validation, and keep the weights with"
        " the lowest loss on them; null: the last weights",
    )
    val_share: Annotated[float | None, AddedLater()] = Field(
        None, gt=0, lt=1, description="the same as a share of the windows"
    )
    eval_steps: Annotated[int, AddedLater()] = Field(
        100, ge=1, description="validate every so many optimiser steps, and after the last one"
    )

    @model_validator(mode="after")
    def _validates(self) -> Self:
        if self.val_windows is not None and self.val_share is not None:
            raise ValueError("give `val_windows` or `val_share`, not both")
        usual = type(self).model_fields["eval_steps"].default
        if self.eval_steps != usual and self.val_windows is None and self.val_share is None:
            raise ValueError("`eval_steps` needs `val_windows` or `val_share`")
        return self

    # What follows has no option in general; trainings with their own recipe override it.

    def betas(self) -> tuple[float, float]:
        """How much of its two moments AdamW keeps from one step to the next."""
        return 0.9, 0.999

    def trains_on(self, windows: int) -> bool:
        """Whether there is a step for a batch of this many windows; an epoch's last is smaller."""
        del windows
        return True

    def validates_first(self) -> bool:
        """Whether the untrained weights are validated, too, so that they may be the best ones."""
        return False

    def keeps_best(self) -> bool:
        """Whether a training with a validation ends with its best weights, not the last ones."""
        return True

    def held_out(self, windows: int) -> int:
        """How many of ``windows`` are for validation; the others are trained on.

        At least one if a share is asked for.
        """
        if self.val_share is not None:
            return max(1, int(windows * self.val_share))
        return self.val_windows or 0

    def refuses_windows(self, windows: int) -> str | None:
        """Why this many windows are too few, or None."""
        held = self.held_out(windows)
        if held < windows:
            return None
        return f"{held} of {windows} windows are held out for validation, so none is left to train"

    def steps(self, windows: int) -> int:
        """Number of optimiser steps for this many windows; an epoch's last batch may be smaller."""
        steps = self.epochs * math.ceil(windows / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def windows_seen(self, windows: int) -> int:
        """Windows that go through the model in all epochs, each counted as often as it is seen."""
        # `max_steps` may end in the middle of an epoch, after `rest` full batches of it.
        per_epoch = math.ceil(windows / self.batch_size)
        epochs, rest = divmod(self.steps(windows), per_epoch)
        return epochs * windows + rest * self.batch_size

    def evaluates(self, done: int, steps: int) -> bool:
        """Whether to validate after ``done`` of ``steps`` steps, if windows are held out."""
        return done % self.eval_steps == 0 or done == steps

    def warmup(self, steps: int) -> int:
        """In how many of ``steps`` steps the learning rate rises."""
        return min(self.warmup_steps, math.ceil(WARMUP_SHARE * steps))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step``, counted from 0, of ``steps``; positive at every step."""
        warmup = self.warmup(steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / (steps - warmup)  # in [0, 1)
        if self.schedule == "linear":
            return self.learning_rate * (1 - done)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate
