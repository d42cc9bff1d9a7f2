"""Modules that replace a removed attention or MLP: no weights, nothing added to the residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunebench.model.coupling.sub_block import Answer

CACHES = ("past_key_values", "layer_past", "past_key_value", "cache_params")
"""What families call the KV cache that an attention gets."""


def is_removed(module: nn.Module) -> bool:
    """Whether this module took the place of an attention or MLP that was removed."""
    return isinstance(module, _Removed)


class _Removed(nn.Module):
    """Returns the number 0, which broadcasts over the residual stream that it is added to.

    Some families need another ``answer``.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the layer expects, for a call with these arguments."""
        outputs, position, name, full = self._answer
        if position >= 0 or name:
            first = args[position] if position >= 0 else kwargs[name]
        else:
            states = next(each for each in (*args, *kwargs.values()) if torch.is_tensor(each))
            first = torch.zeros_like(states) if full else states.new_zeros(())
        return (first, *(None,) * (outputs - 1)) if outputs else first


class RemovedMLP(_Removed):
    """In the place of an MLP."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.given(args, kwargs)


class RemovedAttention(_Removed):
    """In the place of an attention.

    transformers asks the KV cache of the first layer how many tokens it has seen. So a removed
    attention also fills its part of the cache, with two numbers per token.
    """

    def __init__(self, answer: Answer, layer_idx: int) -> None:
        super().__init__(answer)
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if cache is not None:
            batch, tokens, _width = states.shape
            filler = states.new_zeros(batch, 1, tokens, 1)  # [batch, heads, tokens, channels]
            cache.update(filler, filler, self.layer_idx)
        return self.given(args, kwargs)
