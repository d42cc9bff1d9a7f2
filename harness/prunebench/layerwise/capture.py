"""Take the inputs of the decoder layers from the model, so that layers can run one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunebench.errors import PrunebenchError
from prunebench.model.batches import windows_per_batch

if TYPE_CHECKING:
    from torch import nn

    from prunebench.model.anatomy import Anatomy


class Call(NamedTuple):
    """What the model passes to one of its layers besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Captured(NamedTuple):
    """Everything that is needed to run the layers without the model."""

    states: list[torch.Tensor]
    """Inputs of layer 0, one tensor [windows of the batch, length, hidden] for each batch."""
    calls: list[list[Call]]
    """How each layer is called, by layer and batch: families may pass each layer its own mask."""

    def batches(self, layer: int) -> list[tuple[torch.Tensor, Call]]:
        """The states of every batch, and how this layer is called with them."""
        return list(zip(self.states, self.calls[layer], strict=True))


def batches_of(
    model: Any, tokens: torch.Tensor, windows: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Split the tokens, int64 [windows, length], into batches on the model's device.

    ``windows`` in each; None: as many as the device computes efficiently.
    """
    size = windows_per_batch(tokens.shape[1], model.device) if windows is None else windows
    return torch.split(tokens.to(model.device), size)


def capture(
    model: Any, parts: Anatomy, tokens: torch.Tensor, windows: int | None = None
) -> Captured:
    """Record layer 0's inputs and how the model calls each layer, for tokens [windows, length].

    ``windows``: see `batches_of`.

    The model prepares masks and positions and calls every layer, but each layer hands its input on
    unchanged. So this takes almost no time, and works for families with different masks per layer.
    Raises PrunebenchError if layers get more from each other than hidden states.
    """
    found = Captured([], [[] for _ in parts.layers])
    flow = parts.flow
    if flow.fault is not None:
        raise PrunebenchError(
            f"the layers of {type(model).__name__} cannot be run one by one: {flow.fault}",
            hint="take a method that needs no calibration, such as magnitude",
        )

    def record(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        hidden, *others = args or (kwargs.pop("hidden_states"),)
        if index == 0:
            # A copy: the walk overwrites the states in place, layer by layer.
            found.states.append(hidden.clone())
        found.calls[index].append(Call(tuple(others), kwargs))
        return hidden  # type: ignore[no-any-return]

    with replaced_layers(parts, record):
        for batch in batches_of(model, tokens, windows):
            parts.decoder(batch, use_cache=False)
    return found


@contextmanager
def replaced_layers(
    parts: Anatomy, compute: Callable[[int, tuple[Any, ...], dict[str, Any]], torch.Tensor]
) -> Iterator[None]:
    """Inside the block, a layer hands on ``compute(its index, args, kwargs)`` instead of running."""

    def forward_of(index: int, length: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = compute(index, args, kwargs)
            return (hidden, *[None] * (length - 1)) if length else hidden

        return forward

    # An instance may have a `forward` of its own already: accelerate, for one, sets it.
    overridden = [layer.__dict__.get("forward") for layer in parts.layers]
    forwards = [forward_of(index, length) for index, length in enumerate(parts.flow.lengths)]
    try:
        for layer, forward in zip(parts.layers, forwards, strict=True):
            layer.forward = forward
        yield
    finally:
        for layer, before in zip(parts.layers, overridden, strict=True):
            layer.__dict__.pop("forward", None)
            if before is not None:
                layer.__dict__["forward"] = before


def run_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    call: Call,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The layer's output for hidden states [windows, length, hidden].

    ``weights``: parameters to compute with instead of the layer's own, by their path in it.
    """
    if not weights:
        return hidden_states(layer(hidden, *call.args, **call.kwargs))
    return hidden_states(
        torch.func.functional_call(layer, dict(weights), (hidden, *call.args), call.kwargs)
    )


def hidden_states(output: Any) -> torch.Tensor:
    """The hidden states in what a layer returns.

    Layers of transformers 5 return the tensor itself, other code a tuple that begins with it.
    """
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
