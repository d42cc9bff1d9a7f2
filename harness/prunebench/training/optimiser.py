"""AdamW under masks: masked weights stay exactly zero, half-precision weights move in float32.

The gradients of masked weights are set to zero before AdamW sees them, so both of its moments are
zero, and so are its update and the decay of a weight that is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

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


class Optimiser:
    """AdamW over float32 weights: the parameters, or float32 copies of half-precision ones.

    ``parameters`` and ``masks`` are by path; a mask is bool, of the parameter's shape, and True for
    weights to hold at zero, which starts here.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        settings: TrainingSettings,
        masks: Mapping[str, torch.Tensor],
        penalty: Penalty | None,
    ) -> None:
        self.parameters = parameters
        self.settings = settings
        self.masks = masks
        self.penalty = penalty
        self.weights: dict[str, torch.Tensor] = {}
        for name, parameter in parameters.items():
            if name in masks:
                parameter.data.masked_fill_(masks[name], 0)
            exact = parameter.dtype in {torch.float32, torch.float64}
            self.weights[name] = parameter if exact else parameter.detach().float()
        fused = all(weight.device.type in {"cpu", "cuda"} for weight in self.weights.values())
        self.adam = torch.optim.AdamW(
            list(self.weights.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=fused,
        )

    def step(self, rate: float) -> None:
        """Update once with the accumulated gradients at this learning rate, and delete them.

        Raises NotFiniteError before anything changes.
        """
        with torch.no_grad():
            self._clip(self._gradients())
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
            for name, parameter in self.parameters.items():
                if self.weights[name] is not parameter:
                    parameter.copy_(self.weights[name])  # rounded to the parameter's type

    def _gradients(self) -> list[torch.Tensor]:
        """The gradients of loss and penalty, zero under the masks, attached to `weights`."""
        gradients: list[torch.Tensor] = []
        for name, parameter in self.parameters.items():
            weight = self.weights[name]
            if parameter.grad is None:  # the loss does not depend on it
                continue
            weight.grad = parameter.grad.to(weight.dtype)
            if weight is not parameter:
                parameter.grad = None
            if self.penalty is not None and weight.dim() > 1:
                self.penalty.add_gradient(weight, weight.grad)
            if name in self.masks:
                weight.grad.masked_fill_(self.masks[name], 0)
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
