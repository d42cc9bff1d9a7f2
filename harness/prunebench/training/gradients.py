"""Gradients of the loss by the weights of linears, as statistics for methods."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from prunebench.callbacks import ignore
from prunebench.training.learning import learning
from prunebench.training.loss import next_token_backward


def weight_gradients(
    model: Any,
    linears: Mapping[str, torch.nn.Linear],
    windows: torch.Tensor,
    asked: Collection[str],
    progress: Callable[[int, int], None] = ignore,
) -> dict[str, dict[str, torch.Tensor]]:
    """`gradient` and `gradient_norm`, those that are ``asked`` for, by the linear's path.

    windows: int64 [windows, length]. Both are float32 [out, in]. With g the gradient of a window's
    mean loss: the mean of g over the windows, and the root of the sum of g^2 (the l2 form of
    GBLM-Pruner's gradient norm, arXiv:2311.04902). Each window takes a pass forward and backward.
    The model is left as it was.
    """
    # Of a `Matrix` only the parameter that it is a part of has a gradient.
    owners = {path: getattr(linear, "owner", linear.weight) for path, linear in linears.items()}
    totals = {
        path: {name: torch.zeros_like(linear.weight, dtype=torch.float32) for name in asked}
        for path, linear in linears.items()
    }
    with learning(model, owners.values()):
        for done, window in enumerate(windows, start=1):
            next_token_backward(model, window[None].to(model.device), 1 / (len(window) - 1))
            for path, owner in owners.items():
                if owner.grad is not None:
                    gradient = getattr(linears[path], "view", _as_it_is)(owner.grad)
                    _add(totals[path], gradient, len(windows))
            for owner in owners.values():
                owner.grad = None
            progress(done, len(windows))
    for of_linear in totals.values():
        if "gradient_norm" in of_linear:
            of_linear["gradient_norm"].sqrt_()
    return totals


def _as_it_is(gradient: torch.Tensor) -> torch.Tensor:
    return gradient


def _add(totals: dict[str, torch.Tensor], gradient: torch.Tensor, windows: int) -> None:
    """Add the gradient of a weight to its ``totals``."""
    found = gradient.float()
    if "gradient" in totals:
        totals["gradient"].add_(found, alpha=1 / windows)
    if "gradient_norm" in totals:
        totals["gradient_norm"].addcmul_(found, found)
