"""Next-token cross-entropy and its gradient, in float32 and in bounded memory.

The gradient of cross-entropy at the logits is softmax - one-hot. We compute it here, slice by slice
in float32, because autograd would hold the logits three times.
"""

from __future__ import annotations

from typing import Any

import torch

from prunebench.errors import PrunebenchError
from prunebench.training.windows import TrainingWindows

LOGITS_BYTES = 32 << 20
"""Bytes of float32 logits that are in memory at once while the loss is computed."""


def next_token_backward(
    model: Any, tokens: torch.Tensor, weight: float, counted: torch.Tensor | None = None
) -> float:
    """Add the gradients of ``weight`` times the sum of -log p(next token), and return that sum.

    tokens: int64 [windows, length]. ``counted``, bool of the same shape, True for tokens whose
    prediction counts; None: all but the first. The sum is in nats and not weighted. A model in
    float16 has gradients in float16: choose ``weight`` so that small ones do not become zero.
    Raises PrunebenchError if the model's forward gives its parameters no gradient.
    """
    # [windows, length - 1, vocabulary]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    if not logits.requires_grad:  # Reformer's layers ask whether their input wants a gradient
        raise PrunebenchError(
            f"the layers of {type(model).__name__} give their weights no gradient as long as the"
            " embeddings stay as they are",
            hint="leave out the recovery, and methods that need gradients",
        )
    flat = logits.detach().flatten(0, 1)  # [tokens, vocabulary]
    gradient = torch.empty_like(flat)
    total = _sum(flat, *_targets(tokens, counted, flat.device), gradient, weight)
    logits.backward(gradient.view_as(logits))
    return total


def mean_loss(model: Any, windows: TrainingWindows, batch_size: int) -> float:
    """Mean of -log p(next token) over the tokens of ``windows`` that count, in nats.

    The model runs as it is: switch dropout off before.
    """
    device = model.get_input_embeddings().weight.device
    total = 0.0
    # Not a decorator, which would import torch when plugins are listed.
    with torch.no_grad():
        for part in windows.split(batch_size):
            logits = model(input_ids=part.tokens[:, :-1].to(device), use_cache=False).logits
            flat = logits.flatten(0, 1)  # [tokens, vocabulary]
            total += _sum(flat, *_targets(part.tokens, part.counted, flat.device))
    return total / windows.targets


def _targets(
    tokens: torch.Tensor, counted: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next tokens, [tokens, 1], and whether each counts, [tokens, 1] or None."""
    targets = tokens[:, 1:].reshape(-1, 1).to(device)
    return targets, None if counted is None else counted[:, 1:].reshape(-1, 1).to(device)


def _sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    counted: torch.Tensor | None,
    gradient: torch.Tensor | None = None,
    weight: float = 1.0,
) -> float:
    """The sum of -log p(target); writes ``weight`` times its gradient into ``gradient``.

    logits and gradient: [tokens, vocabulary]; targets and counted: [tokens, 1].
    """
    rows = max(1, LOGITS_BYTES // (4 * logits.shape[1]))
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        target = targets[part]
        log_p = torch.log_softmax(logits[part].float(), dim=1)  # [rows, vocabulary]
        found = log_p.gather(1, target)
        total -= (found if counted is None else found * counted[part]).sum(dtype=torch.float64)
        if gradient is not None:
            slope = log_p.exp_().scatter_add_(1, target, found.new_full(target.shape, -1.0))
            if counted is not None:
                slope.mul_(counted[part])
            # Rounded to the logits' type only here: the factor keeps small values above zero.
            gradient[part] = slope.mul_(weight)
    return float(total)
