"""What stands where an attention or an MLP was removed: it adds nothing to the residual stream and has no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class RemovedMLP(nn.Module):
    """Gives the number 0, which broadcasts over whatever it is added to."""

    is_removed = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


class RemovedAttention(nn.Module):
    """Gives the number 0 and no attention weights.

    transformers asks the KV cache of the first layer how many tokens there were, so a place is kept there even where no
    keys are: two numbers a token.
    """

    is_removed = True

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        cache = kwargs.get(
            "past_key_values", kwargs.get("layer_past")
        )  # GPT-NeoX has another name for it
        if cache is not None:
            batch, tokens, _width = hidden_states.shape
            place = hidden_states.new_zeros(batch, 1, tokens, 1)
            cache.update(place, place, self.layer_idx)
        return hidden_states.new_zeros(()), None
