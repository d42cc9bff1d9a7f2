"""A layer's inputs, taken from the model itself: its hidden states, and how the model calls each layer.

With them layers run one by one outside the model, for families whose layers get different masks too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunebench.model.batches import windows_per_batch

if TYPE_CHECKING:
    from torch import nn

    from prunebench.model.anatomy import Anatomy


@dataclass
class Call:
    """How the model calls one of its layers."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def batches_of(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tokens, int64 [windows, length], in batches on the model's device."""
    return torch.split(tokens.to(model.device), windows_per_batch(tokens.shape[1], model.device))


def capture(
    model: Any, parts: Anatomy, tokens: torch.Tensor
) -> tuple[list[torch.Tensor], list[list[Call]]]:
    """The inputs of layer 0, and how each layer is called for each batch.

    Every layer is asked by the model itself, with its own mask and positions, but hands its input on unchanged, so that
    this costs next to nothing and holds for families whose layers get different masks.
    """
    states: list[torch.Tensor] = []
    calls: list[list[Call]] = [[] for _ in parts.layers]

    def stand_in(index: int) -> Callable[..., torch.Tensor]:
        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if index == 0:
                states.append(hidden.clone())
            calls[index].append(Call(args, kwargs))
            return hidden

        return forward

    overridden = [
        layer.__dict__.get("forward") for layer in parts.layers
    ]  # accelerate, for one, sets it
    try:
        for index, layer in enumerate(parts.layers):
            layer.forward = stand_in(index)
        for batch in batches_of(model, tokens):
            parts.decoder(batch, use_cache=False)
    finally:
        for layer, forward in zip(parts.layers, overridden, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward
    return states, calls


def run(layer: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    return bare(layer(hidden, *call.args, **call.kwargs))


def bare(output: Any) -> torch.Tensor:
    """A layer's hidden states; transformers 5 returns the tensor itself, other code a tuple that begins with it."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
