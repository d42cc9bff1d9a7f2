"""The training loop of recoveries and iterative methods: next-token cross-entropy with AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.training.optimiser import NotFiniteError, Optimiser, Penalty
from prunebench.training.settings import TrainingSettings

LOGITS_BYTES = 32 << 20
"""Bytes of float32 logits that are in memory at once while the loss is computed."""


@dataclass(frozen=True)
class TrainingLog:
    """What one training did."""

    losses: list[float]
    """Mean cross-entropy of each step's batch, nats per token, before the step."""
    tokens: int
    """Tokens that went through the model, each as often as it was seen."""
    parameters: int
    """Number of trained parameters, masked ones included."""
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

    ``masks`` by the same paths: bool, the parameter's shape, True for weights to hold at zero.
    Half-precision parameters are updated in float32 and rounded after each step, because small
    steps would be lost in them. Afterwards the training mode and `requires_grad` are as before,
    and there are no gradients. ``generator`` decides the order of the windows and the dropout;
    ``progress(done, total)`` counts optimiser steps.

    Raises PrunebenchError, with the step and the parameter, if the loss or a gradient is not
    finite. The model is then as the last finite step left it.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens are [windows, length >= 2], not {list(tokens.shape)}")
    begun = time.perf_counter()
    steps = settings.steps(len(tokens))
    device = model.get_input_embeddings().weight.device
    losses: list[float] = []
    seen = 0
    with _training_mode(model, parameters), _seeded(generator, device):
        optimiser = Optimiser(parameters, settings, masks or {}, penalty)
        for batch in _batches(tokens, settings, steps, generator):
            step = len(losses)
            loss = 0.0
            # Each micro-batch adds its share of the batch's mean, so their size changes no result.
            for part in torch.split(batch, settings.micro_batch_size):
                loss += _backward(model, part.to(device), len(part) / len(batch))
            if not math.isfinite(loss):
                raise PrunebenchError(
                    f"training step {step + 1} of {steps}: the loss is not finite"
                    f"{_culprit(parameters)}",
                    hint="lower `learning_rate`, or prune less: the model may be broken before it"
                    " is trained",
                )
            try:
                optimiser.step(settings.rate(step, steps))
            except NotFiniteError as error:
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
    """``steps`` batches, int64 [up to batch_size, length], in a new order in every epoch."""
    given = 0
    while True:
        order = torch.randperm(len(tokens), generator=generator)
        for chosen in torch.split(order, settings.batch_size):
            if given == steps:
                return
            given += 1
            yield tokens[chosen]


def _backward(model: Any, batch: torch.Tensor, share: float) -> float:
    """Add the gradients of ``share`` of the batch's mean loss, and return that share of the loss.

    batch: int64 [windows, length].
    """
    # [windows, length - 1, vocabulary]
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    targets = batch[:, 1:].reshape(-1, 1).to(logits.device)  # [tokens, 1]
    flat = logits.detach().reshape(len(targets), -1)  # [tokens, vocabulary]
    # The gradient of cross-entropy at the logits is softmax - one-hot. We compute it here, slice by
    # slice in float32: autograd would hold the logits three times.
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


def _culprit(parameters: Mapping[str, torch.Tensor]) -> str:
    """Name a trained parameter that is itself not finite, if there is one."""
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            return f", and {name} holds values that are not finite"
    return ""


@contextmanager
def _training_mode(model: Any, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Training mode, and gradients for ``parameters`` only; restore everything afterwards."""
    mode = model.training
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad = False
    for parameter in parameters.values():
        parameter.requires_grad = True
    model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(mode)
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad = required


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which dropout uses, from ``generator``; restore it later."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
