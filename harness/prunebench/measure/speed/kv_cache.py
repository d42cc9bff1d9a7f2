"""The KV cache that a model fills while it generates, and how many bytes of it a step reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import DynamicCache

from prunebench.errors import PrunebenchError


def cache_maker(model: Any) -> Callable[[], Any]:
    """A function that makes an empty KV cache that grows.

    Raises PrunebenchError if the model cannot be given the cache of the tokens before.
    """
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise _without_a_cache(model)
    # As `generate` asks, with its own list of classes.
    if getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return lambda: DynamicCache(config=cache_config(model))
    return type(_after_one_token(model, None))  # MiniMax takes only a cache of its own class


def cache_config(model: Any) -> Any:
    """The config that says what each layer caches; None if it says of no layer."""
    config = model.config.get_text_config(decoder=True)
    # BLT's has several models in it, and no layers of its own.
    return None if getattr(config, "num_hidden_layers", None) is None else config


@torch.inference_mode()
def kv_cache_bytes(model: Any, prompt: int, new_tokens: int, batch_size: int = 1) -> int:
    """Mean bytes of KV cache that a step of the generation phase reads.

    Step k (1 to new_tokens - 1) attends to prompt + k positions, or to the sliding window if the
    layer has one. The bytes of a position are those of the cache that the model fills for one
    token, so that any number and width of heads is counted as it is. The state of a linear
    attention or a state space has the same size at every position.
    """
    steps = range(1, new_tokens)
    total = 0.0
    cache = _after_one_token(model, cache_maker(model)())
    for layer in cache.layers:
        total += _state_bytes(layer)
        if getattr(layer, "keys", None) is None:
            continue
        position = layer.keys.nbytes + layer.values.nbytes  # both [1, key heads, 1, head]
        window = getattr(layer, "sliding_window", None) or prompt + new_tokens
        total += position * sum(min(prompt + step, window) for step in steps) / len(steps)
    total += sum(state.nbytes for state in _tensors(getattr(cache, "linear_cache", ())))
    return round(total * batch_size)


def _after_one_token(model: Any, cache: Any) -> Any:
    token = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        output = model(token, past_key_values=cache, use_cache=True)
    if getattr(output, "past_key_values", None) is None:
        raise _without_a_cache(model)
    return output.past_key_values


def _without_a_cache(model: Any) -> PrunebenchError:
    return PrunebenchError(
        f"{type(model).__name__} takes no KV cache, so its tokens cannot be timed one by one",
        hint="leave its latency out: `profile: null`",
    )


def _state_bytes(layer: Any) -> int:
    states = (getattr(layer, name, {}) for name in ("conv_states", "recurrent_states"))
    return sum(state.nbytes for each in states for state in _tensors(each.values()))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor))
