"""The training loop that recoveries and iterative methods share: next-token cross-entropy, AdamW, masks that hold.

Masked weights stay exactly zero: their gradients are zeroed before the optimiser sees them, so that both of its
moments, the update and the decay of a zero weight are zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from prunebench.errors import PrunebenchError
from prunebench.training.settings import TrainingSettings

LOGITS_BYTES = 32 << 20
"""Float32 logits that stand in memory at once while the loss is taken."""


@dataclass(frozen=True)
class Penalty:
    """strength * sum |w|^p over the trained weights, p = 1 or 2, added to the loss; biases are free of it."""

    kind: Literal["l1", "l2"]
    strength: float

    def add_gradient(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add the penalty's gradient to ``gradient``; both have the weight's shape."""
        if self.kind == "l1":
            gradient.add_(weight.sign(), alpha=self.strength)
        else:
            gradient.add_(weight, alpha=2 * self.strength)


@dataclass(frozen=True)
class TrainingLog:
    """What a training did."""

    losses: list[float]
    """Mean cross-entropy of each step, nats per token, before the step."""
    tokens: int
    """Tokens that went through the model, each as often as it was seen."""
    parameters: int
    """Trained parameters, held ones included."""
    seconds: float

    @property
    def notes(self) -> dict[str, Any]:
        """A summary as JSON values."""
        return {
            "steps": len(self.losses),
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
            "trained_parameters": self.parameters,
            "seconds": round(self.seconds, 3),
        }


def train(
    model: Any,
    parameters: Mapping[str, torch.Tensor],
    tokens: torch.Tensor,
    settings: TrainingSettings,
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    penalty: Penalty | None = None,
    generator: torch.Generator,
    progress: Callable[[int, int], None],
) -> TrainingLog:
    """Train ``parameters`` of ``model``, by path, in place on ``tokens``, int64 [windows, length].

    ``masks`` by the same paths: bool, the parameter's shape, True where a weight is held at zero. Half-precision
    parameters are updated in float32 and rounded after each step, since small steps would be lost in them. Training or
    evaluation mode and `requires_grad` are as before afterwards; gradients are gone. ``generator`` decides the order
    of the windows and the dropout; ``progress(done, total)`` counts optimiser steps.

    Raises PrunebenchError where the loss or a gradient is not finite, naming the step and the parameter; the model is
    then left as the last finite step made it.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens are [windows, length >= 2], not {list(tokens.shape)}")
    begun = time.perf_counter()
    steps = settings.steps(len(tokens))
    device = model.get_input_embeddings().weight.device
    losses: list[float] = []
    seen = 0
    with _training(model, parameters), _seeded(generator, device):
        optimiser = _Optimiser(parameters, settings, masks or {}, penalty)
        for batch in _batches(tokens, settings, steps, generator):
            step = len(losses)
            loss = 0.0
            for part in torch.split(batch, settings.micro_batch_size):
                loss += _backward(model, part.to(device), len(part) / len(batch))
            if not math.isfinite(loss):
                raise PrunebenchError(
                    f"training step {step + 1} of {steps}: the loss is not finite{_culprit(parameters)}",
                    hint="lower `learning_rate`, or prune less: the model may be broken before it is trained",
                )
            try:
                optimiser.step(settings.rate(step, steps))
            except _NotFinite as error:
                raise PrunebenchError(
                    f"training step {step + 1} of {steps}: the gradient of {error} is not finite",
                    hint="lower `learning_rate`, or load the model in float32",
                ) from error
            losses.append(loss)
            seen += batch.numel()
            progress(step + 1, steps)
    count = sum(parameter.numel() for parameter in parameters.values())
    return TrainingLog(losses, seen, count, time.perf_counter() - begun)


def _batches(
    tokens: torch.Tensor, settings: TrainingSettings, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """``steps`` batches, int64 [up to batch_size, length]; every epoch in a new order."""
    made = 0
    while True:
        order = torch.randperm(len(tokens), generator=generator)
        for chosen in torch.split(order, settings.batch_size):
            if made == steps:
                return
            made += 1
            yield tokens[chosen]


def _backward(model: Any, batch: torch.Tensor, share: float) -> float:
    """Add ``share`` of the batch's loss to the gradients and give that share; batch int64 [windows, length].

    The gradient at the logits is softmax minus one-hot, taken in float32 slice by slice: a graph over the logits
    would hold them three times.
    """
    logits = model(
        input_ids=batch[:, :-1], use_cache=False
    ).logits  # [windows, length - 1, vocabulary]
    targets = batch[:, 1:].reshape(-1, 1).to(logits.device)  # [tokens, 1]
    flat = logits.detach().reshape(len(targets), -1)  # [tokens, vocabulary]
    gradient = torch.empty_like(flat)
    rows = max(1, LOGITS_BYTES // (4 * flat.shape[1]))
    scale = share / len(targets)
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start in range(0, len(targets), rows):
        part = torch.log_softmax(flat[start : start + rows].float(), dim=1)
        target = targets[start : start + rows]
        total -= part.gather(1, target).sum(dtype=torch.float64)
        part.exp_().scatter_add_(1, target, part.new_full(target.shape, -1.0))
        gradient[start : start + rows] = part.mul_(scale)
    logits.backward(gradient.view_as(logits))
    return float(total) * scale


class _NotFinite(Exception):  # noqa: N818
    """Carries the path of the parameter whose gradient is not finite."""


class _Optimiser:
    """AdamW over float32 weights: the parameters themselves, or float32 copies of half-precision ones."""

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
        """One update with the gradients that have been gathered, which it takes away."""
        with torch.no_grad():
            self._clip(self._gradients())
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
            for name, parameter in self.parameters.items():
                if self.weights[name] is not parameter:
                    parameter.copy_(self.weights[name])

    def _gradients(self) -> list[torch.Tensor]:
        """The gradients as the optimiser shall see them: of the loss and the penalty, zero under the masks."""
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
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise _NotFinite(self._culprit())
        most = self.settings.max_grad_norm
        if most is not None and norm > most:
            for gradient in gradients:
                gradient.mul_(most / norm)

    def _culprit(self) -> str:
        for name, weight in self.weights.items():
            if weight.grad is not None and not bool(torch.isfinite(weight.grad).all()):
                return name
        return "all parameters together"


def _culprit(parameters: Mapping[str, torch.Tensor]) -> str:
    """Names a trained parameter that is not finite itself, where there is one."""
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            return f", and {name} holds values that are not finite"
    return ""


@contextmanager
def _training(model: Any, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Training mode, gradients for ``parameters`` alone; everything as before afterwards."""
    mode = model.training
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in asked:
        parameter.requires_grad = False
    for parameter in parameters.values():
        parameter.requires_grad = True
    model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(mode)
        for parameter, wanted in asked:
            parameter.grad = None
            parameter.requires_grad = wanted


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it from ``generator``, and put it back afterwards."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
