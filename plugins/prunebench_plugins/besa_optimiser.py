"""The optimisers that learn BESA's coefficients, their learning rate, and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch

from prunebench import PrunebenchError

AGC_LEAST_NORM = 1e-3
"""timm's adaptive clipping treats parameters with a smaller norm as if they had this one."""


def learning_rate(options: Any) -> float:
    """The learning rate, by default that of the released code for the optimiser."""
    if options.learning_rate is not None:
        return float(options.learning_rate)
    return 1.0 if options.optimizer == "prodigy" else 0.01


def cosine_factor(options: Any, epoch: int) -> float:
    """What the learning rate is multiplied by in an epoch."""
    if not options.use_cos_sche:
        return 1.0
    # The released code sets the rate of an epoch from the number of the epoch before it.
    done = max(0, epoch - 1) if options.mode == "reference" else epoch
    return (1 + math.cos(math.pi * done / options.epochs)) / 2


def make_optimiser(options: Any, theta: torch.Tensor) -> torch.optim.Optimizer:
    """AdamW, or Prodigy (arXiv:2306.06101). Raises PrunebenchError if that is not installed."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            [theta], lr=learning_rate(options), weight_decay=options.weight_decay
        )
    found: torch.optim.Optimizer = prodigy()(
        [theta],
        lr=learning_rate(options),
        weight_decay=options.weight_decay,
        decouple=options.decouple,
        use_bias_correction=options.use_bias_correction,
        safeguard_warmup=options.safeguard_warmup,
        d_coef=options.d_coef,
    )
    return found


def prodigy() -> Any:
    """The optimiser of the package prodigyopt, an optional extra."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise PrunebenchError(
            "besa: the optimiser Prodigy is not installed",
            hint="pip install 'prunebench[besa]', or leave `optimizer: adamw`",
        ) from error
    return Prodigy


@torch.no_grad()
def clip(theta: torch.Tensor, options: Any) -> None:
    """Clip the gradient in place as `clip_grad` and `clip_mode` say; a row of theta is a unit."""
    if options.clip_grad is None:
        return
    assert theta.grad is not None
    if options.clip_mode == "norm":
        torch.nn.utils.clip_grad_norm_([theta], options.clip_grad)
    elif options.clip_mode == "value":
        torch.nn.utils.clip_grad_value_([theta], options.clip_grad)
    else:  # adaptive (arXiv:2102.06171): by the norm of what is changed
        most = theta.norm(dim=-1, keepdim=True).clamp_min(AGC_LEAST_NORM) * options.clip_grad
        norm = theta.grad.norm(dim=-1, keepdim=True)
        theta.grad.mul_(torch.where(norm < most, 1.0, most / norm.clamp_min(1e-6)))
