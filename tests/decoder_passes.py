"""The yardstick of what pruning costs: one pass of the dense decoder layers over the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from prunebench import Context, anatomy
from prunebench.callbacks import ignore
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
    model: Any,
    name: str,
    options: dict[str, Any],
    tokens: torch.Tensor,
    progress: Callable[[int, int], None] = ignore,
) -> tuple[float, dict[str, Any]]:
    """Seconds of pruning ``model`` in place and the notes of the method."""
    cls = load_plugins()["method"][name].value
    method = cls(cls.Options(**options))
    context = Context(tokens, 0, list(range(len(anatomy(model).layers))), progress)
    begun = _now(model)
    method.prune(model, context)
    return _now(model) - begun, context.notes


def pruning_between_passes(
    model: Any, name: str, options: dict[str, Any], tokens: torch.Tensor, stops: int
) -> tuple[float, float]:
    """Seconds of pruning ``model`` in place, and seconds of a decoder pass.

    The machine drifts, so both are measured together: the method stops that many times, at even
    distances of its progress, and some windows go through the decoder, half of a pass in all. One
    more goes first each time, untimed, so that they find the caches as one finds them behind
    another. Zeros that are there by then cost a dense kernel what any weight costs.
    """
    some = len(tokens) // (2 * stops)
    passes: list[float] = []
    stopped: list[float] = []

    def moved(done: int, total: int) -> None:
        while len(passes) < stops * done // total:
            begun = _now(model)
            decoder_pass(model, tokens[:1])
            passes.append(decoder_pass(model, tokens[:some]))
            stopped.append(_now(model) - begun)

    seconds, _ = pruning(model, name, options, tokens, moved)
    assert len(passes) == stops
    return seconds - sum(stopped), sum(passes) * len(tokens) / (some * stops)


def _now(model: Any) -> float:
    """The clock when the model's device has done all that it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
