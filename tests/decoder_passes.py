"""The yardstick of what pruning costs: one pass of the dense decoder layers over the same tokens."""

from __future__ import annotations

import time
from typing import Any

import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins


@torch.no_grad()
def decoder_pass(model: Any, tokens: torch.Tensor) -> float:
    """Seconds of one pass of the decoder layers, window by window and without the head."""
    windows = tokens.to(model.device)
    begun = _now(model)
    for window in windows:
        anatomy(model).decoder(window[None], use_cache=False)
    return _now(model) - begun


@torch.no_grad()
def pruning(
    model: Any, name: str, options: dict[str, Any], tokens: torch.Tensor
) -> tuple[float, dict[str, Any]]:
    """Seconds of pruning ``model`` in place and the notes of the method."""
    cls = load_plugins()["method"][name].value
    method = cls(cls.Options(**options))
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))))
    begun = _now(model)
    method.prune(model, context)
    return _now(model) - begun, context.notes


def _now(model: Any) -> float:
    """The clock when the model's device has done all that it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
