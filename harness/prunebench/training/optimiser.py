"""AdamW under masks: masked weights stay exactly zero, half-precision weights move in float32.

The gradients of masked weights are set to zero before AdamW sees them, so both of its moments are
zero, and so are its update and the decay of a weight that is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import torch

from prunebench.model.zeros import set_to_zero
from prunebench.training.settings import TrainingSettings


@dataclass(frozen=True)
class Penalty:
    """strength * sum |w|^p over the trained weights, p = 1 or 2, added to the loss.

    One-dimensional parameters (biases and norms) are not penalised.
    """

    kind: Literal["l1", "l2"]
    strength: float

    def add_gradient(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add the penalty's gradient to ``gradient``; both have the weight's shape."""
        if self.kind == "l1":
            gradient.add_(weight.sign(), alpha=self.strength)  # d|w| = sign(w)
        else:
            gradient.add_(weight, alpha=2 * self.strength)  # dw^2 = 2 w


class NotFiniteError(Exception):
    """A gradient is not finite; the message is the path of its parameter."""


@dataclass(frozen=True)
class Trainable:
    """The parameters to train, by path, and what holds them."""

    parameters: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By the same paths: bool, the parameter's shape, True for weights to hold at zero."""
    penalty: Penalty | None = None


class Optimiser:
    """AdamW over float32 weights: the parameters, or float32 copies of half-precision ones.

    Masked weights are zero from the start. Gradients are added up in float32 as soon as a backward
    pass has made them, because micro-batches would be lost in a half-precision sum. It is a context
    manager that removes its hooks from the parameters at the end.
    """

    def __init__(self, trainable: Trainable, settings: TrainingSettings) -> None:
        self.trainable = trainable
        self.settings = settings
        self.weights: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []
        for name, parameter in trainable.parameters.items():
            if name in trainable.masks:
                set_to_zero(parameter.data, trainable.masks[name])
            exact = parameter.dtype in {torch.float32, torch.float64}
            self.weights[name] = parameter if exact else parameter.detach().float()
        fused = all(weight.device.type in {"cpu", "cuda"} for weight in self.weights.values())
        self.adam = torch.optim.AdamW(
            list(self.weights.values()),
            lr=settings.learning_rate,
            betas=settings.betas(),
            weight_decay=settings.weight_decay,
            fused=fused,
        )

    def __enter__(self) -> Self:
        for name, parameter in self.trainable.parameters.items():
            if self.weights[name] is not parameter:
                self._hooks.append(_add_up(parameter, self.weights[name]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def step(self, rate: float, loss_scale: float = 1.0) -> None:
        """Update once with the accumulated gradients at this learning rate, and delete them.

        The gradients are those of ``loss_scale`` times the loss. Raises NotFiniteError before
        anything changes; the gradients are deleted then, too.
        """
        with torch.no_grad():
            try:
                self._clip(self._gradients(loss_scale))
                for group in self.adam.param_groups:
                    group["lr"] = rate
                self.adam.step()
            finally:
                self.adam.zero_grad(set_to_none=True)
            self._write_parameters()

    def state(self) -> dict[str, Any]:
        """What `load` takes: the float32 weights and AdamW's moments."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": weights, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Put weights and moments back, in place."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
            self._write_parameters()
        self.adam.load_state_dict(state["adam"])

    def _write_parameters(self) -> None:
        """Round the float32 weights to the parameters' type, if they are others."""
        for name, parameter in self.trainable.parameters.items():
            if self.weights[name] is not parameter:
                parameter.copy_(self.weights[name])

    def _gradients(self, loss_scale: float) -> list[torch.Tensor]:
        """The gradients of loss and penalty, zero under the masks."""
        gradients: list[torch.Tensor] = []
        for name, weight in self.weights.items():
            if weight.grad is None:  # the loss does not depend on it
                continue
            if loss_scale != 1:
                weight.grad.div_(loss_scale)
            if self.trainable.penalty is not None and weight.dim() > 1:
                self.trainable.penalty.add_gradient(weight, weight.grad)
            if name in self.trainable.masks:
                set_to_zero(weight.grad, self.trainable.masks[name])
            gradients.append(weight.grad)
        return gradients

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        """Scale the gradients to the largest norm that the settings allow."""
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise NotFiniteError(self._first_not_finite())
        most = self.settings.max_grad_norm
        if most is not None and norm > most:
            for gradient in gradients:
                gradient.mul_(most / norm)

    def _first_not_finite(self) -> str:
        for name, weight in self.weights.items():
            if weight.grad is not None and not bool(torch.isfinite(weight.grad).all()):
                return name
        return "all parameters together"  # each norm is finite, and their sum overflows


def _add_up(parameter: torch.Tensor, weight: torch.Tensor) -> Any:
    """Let every backward pass add its gradient to the float32 ``weight`` and free its own."""

    def take(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is not None:
            if weight.grad is None:
                weight.grad = gradient.float()
            else:
                weight.grad.add_(gradient)

    hooked: Any = parameter  # untyped in torch
    return hooked.register_post_accumulate_grad_hook(take)
