"""The training of the recovery `streamline`: its schedule, and its loss on hidden states."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from prunebench import PrunebenchError, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from prunebench import Anatomy

WARMUP = {"mse": 0.01, "llm": 0.02}
"""Share of the schedule in which the learning rate rises."""


class Recipe(TrainingOptions):
    """The schedule of LLM-Streamline's released code, for a number of training windows.

    After a short linear warm-up the learning rate follows a cosine from its peak down to a minimum.
    """

    loss: Literal["mse", "llm"]
    reference: bool
    min_rate: float
    passes: int
    """Forward passes of one epoch, with ``micro_batch_size`` windows each."""

    @classmethod
    def of(cls, options: Any, windows: int) -> Self:
        """The recipe for ``options`` of `Streamline` and this many windows.

        Raises PrunebenchError if they are too few.
        """
        # Here and not by `val_share`, because the schedule depends on what is left to train on.
        held = 0 if options.val_share is None else max(1, int(windows * options.val_share))
        passes = math.ceil((windows - held) / options.batch_size)
        accumulated = options.gradient_accumulation_step
        recipe = cls(
            learning_rate=options.lr,
            epochs=options.epoches,
            batch_size=options.batch_size * accumulated,
            micro_batch_size=options.batch_size,
            weight_decay=options.wd,
            max_grad_norm=options.max_norm if options.loss == "mse" else None,
            val_windows=held or None,
            loss=options.loss,
            reference=options.mode == "reference",
            min_rate=options.min_lr,
            passes=passes,
        )
        if windows > held and not recipe.steps(windows - held):
            raise PrunebenchError(
                f"{passes} forward passes of {options.batch_size} windows fill no optimiser step"
                f" of {accumulated}, and the released code drops them",
                hint="lower `gradient_accumulation_step`, add windows, or leave out"
                " `mode: reference`",
            )
        every = options.eval_steps or max(1, recipe.epoch_steps(windows - held))
        return recipe if not held else recipe.model_copy(update={"eval_steps": every})

    def betas(self) -> tuple[float, float]:
        return (0.9, 0.999) if self.loss == "mse" else (0.9, 0.95)

    def trains_on(self, windows: int) -> bool:
        full = self.batch_size // self.micro_batch_size
        # The released loop clears its gradients at the start of an epoch; accelerate, which drives
        # the other loss, takes a step at the end of one.
        dropped = self.reference and self.loss == "mse"
        return not dropped or math.ceil(windows / self.micro_batch_size) == full

    def epoch_steps(self, windows: int) -> int:
        """Optimiser steps of one epoch."""
        full, rest = divmod(windows, self.batch_size)
        return full + int(rest > 0 and self.trains_on(rest))

    def steps(self, windows: int) -> int:
        return self.epochs * self.epoch_steps(windows)

    def validates_first(self) -> bool:
        return True

    def keeps_best(self) -> bool:
        return not (self.reference and self.loss == "mse")

    def rate(self, step: int, steps: int) -> float:
        if self.reference:
            return self._reference_rate(step, steps)
        warmup = int(WARMUP[self.loss] * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self._cosine((step - warmup) / (steps - warmup))

    def _cosine(self, done: float) -> float:
        share = 0.5 * (1 + math.cos(math.pi * done))
        return self.min_rate + share * (self.learning_rate - self.min_rate)

    def _reference_rate(self, step: int, steps: int) -> float:
        """The released schedule, which is half as long as there are forward passes.

        It moves on once per optimiser step (mse), so that it hardly begins, or once per forward
        pass (llm), so that it comes back.
        """
        length = 0.5 * self.passes * self.epochs
        warmup = WARMUP[self.loss] * length
        at = step
        if self.loss == "llm":
            epoch, inside = divmod(step, max(1, steps // self.epochs))
            accumulated = self.batch_size // self.micro_batch_size
            at = epoch * self.passes + min((inside + 1) * accumulated, self.passes) - 1
        if at < warmup:
            return self.learning_rate * at / max(1.0, warmup)
        return self._cosine((at - warmup) / max(1.0, length - warmup))


class _SeenError(Exception):
    """The states behind the window are there: no further layer needs to run."""


@dataclass(frozen=True)
class WindowStates:
    """Mean square error between a layer's output and the states behind a window of layers.

    L = mean over tokens and channels of (f(x_first) - y_last)^2 (arXiv:2403.19135, section 3.2),
    with x_first the input of the window's first layer and y_last the output of its last one. A
    forward pass of the dense model gives both and ends there. So memory holds the states of one
    batch, whatever the number of windows.
    """

    parts: Anatomy
    """Of the dense model."""
    window: range
    module: nn.Module
    """The layer to train; it is not in the dense model."""
    norm: nn.Module | None = None
    """What the states behind the window pass first."""

    @property
    def device(self) -> torch.device:
        return self.parts.embeddings.weight.device

    def targets(self, windows: Any) -> int:
        """How many tokens are no padding."""
        size: int = windows.size
        return size

    def backward(self, windows: Any, weight: float) -> float:
        loss = self._loss(windows)
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def mean(self, windows: Any, batch_size: int) -> float:
        parts = (part.to(self.device) for part in windows.split(batch_size))
        with torch.no_grad():  # not a decorator, which would import torch when plugins are listed
            return sum(float(self._loss(part)) for part in parts) / self.targets(windows)

    def _loss(self, windows: Any) -> torch.Tensor:
        """Sum over the tokens of the mean square error of their channels."""
        before, after, call = self._states(windows.tokens)
        output = self.module(before, *call[0], **call[1])
        output = output[0] if isinstance(output, tuple) else output
        error = (output.float() - after.float()).square().mean(-1)  # [windows, length]
        if windows.counted is not None:
            # Padding is what comes after the last token that counts.
            used = windows.counted.flip(1).cummax(1).values.flip(1)
            error = error * used
        total: torch.Tensor = error.sum()
        return total

    def _states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The states in front of the window and behind it, and how its first layer is called.

        States are [windows, length, hidden].
        """
        layers = self.parts.layers
        seen: dict[str, Any] = {}

        def first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(kwargs)
            seen["before"] = args[0] if args else given.pop("hidden_states")
            seen["call"] = args[1:], given

        def last(_: nn.Module, __: Any, output: Any) -> None:
            seen["after"] = output[0] if isinstance(output, tuple) else output
            raise _SeenError

        # A forward pass of the model itself: it prepares masks and positions, which differ between
        # families and, with sliding windows, between layers.
        with ExitStack() as hooks, torch.no_grad():
            for handle in self._hooks(layers, first, last):
                hooks.callback(handle.remove)
            with suppress(_SeenError):
                self.parts.decoder(tokens, use_cache=False)
            after = seen["after"] if self.norm is None else self.norm(seen["after"])
        return seen["before"], after, seen["call"]

    def _hooks(self, layers: nn.ModuleList, first: Any, last: Any) -> Iterator[Any]:
        yield layers[self.window[0]].register_forward_pre_hook(first, with_kwargs=True)
        yield layers[self.window[-1]].register_forward_hook(last)
