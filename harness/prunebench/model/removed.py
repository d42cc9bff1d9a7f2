"""Modules that replace a removed attention or MLP: no weights, nothing added to the residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class RemovedMLP(nn.Module):
    """Returns the number 0, which broadcasts over the residual stream that it is added to."""

    is_removed = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


class RemovedAttention(nn.Module):
    """Returns the number 0 and no attention weights.

    transformers asks the KV cache of the first layer how many tokens it has seen. So a removed
    attention also fills its part of the cache, with two numbers per token.
    """

    is_removed = True

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))  # GPT-NeoX: layer_past
        if cache is not None:
            batch, tokens, _width = hidden_states.shape
            filler = hidden_states.new_zeros(
                batch, 1, tokens, 1
            )  # [batch, heads, tokens, channels]
            cache.update(filler, filler, self.layer_idx)
        return hidden_states.new_zeros(()), None
