"""Bring layers and tensors to where they compute.

The model, the calibration states and the layer that computes may be on different devices, and the
layers of a streamed model are in no memory at all until they are lent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch


class LayerSource(Protocol):
    """Lends parts of a model that is not in memory; outside the contexts they have no weights."""

    def frame(self) -> AbstractContextManager[None]:
        """Lend everything that the decoder has besides its layers: embeddings, positions, norms."""

    def layer(self, index: int, *, changes: bool) -> AbstractContextManager[None]:
        """Lend one layer. If ``changes``, write it back when the block ends."""


def lent_frame(source: LayerSource | None) -> AbstractContextManager[None]:
    """Lend what the decoder has besides its layers for the block; nothing without a source."""
    return nullcontext() if source is None else source.frame()


@contextmanager
def lent_layer(
    layer: torch.nn.Module,
    index: int,
    device: torch.device | None,
    source: LayerSource | None,
    *,
    changes: bool,
) -> Iterator[None]:
    """Give ``layer`` its weights on ``device`` in the block; see `LayerSource` and `on_device`."""
    # In this order: a streamed layer has no weights to move before it is lent, and it must be back
    # on the model's device when the source writes it.
    with (
        nullcontext() if source is None else source.layer(index, changes=changes),
        on_device(layer, device),
    ):
        yield


@contextmanager
def on_device(layer: torch.nn.Module, device: torch.device | None) -> Iterator[None]:
    """Move ``layer`` to ``device`` for the block, and back also after an error; None: no move."""
    parameter = next(layer.parameters(), None)  # all parameters of a layer are on one device
    if device is None or parameter is None:
        yield
        return
    home = parameter.device
    layer.to(device)
    try:
        yield
    finally:
        layer.to(home)


def moved(value: Any, device: torch.device | None) -> Any:
    """``value`` with all its tensors on ``device``, inside tuples, lists and dicts too.

    None moves nothing.
    """
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value
