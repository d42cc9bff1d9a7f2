"""Where a layer computes: the model, the calibration states and the layer at work may lie on different devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch


class LayerSource(Protocol):
    """Lends the parts of a model that is not in memory as a whole; outside the contexts they have no weights."""

    def frame(self) -> AbstractContextManager[None]:
        """Everything that the decoder has besides its layers."""

    def layer(self, index: int, *, changes: bool) -> AbstractContextManager[None]:
        """One layer; what ``changes`` it is kept."""


def framed(lender: LayerSource | None) -> AbstractContextManager[None]:
    """Within, the model runs but for its layers. Without a lender it always does."""
    return nullcontext() if lender is None else lender.frame()


@contextmanager
def at_work(
    layer: torch.nn.Module,
    index: int,
    device: torch.device | None,
    lender: LayerSource | None,
    *,
    changes: bool,
) -> Iterator[None]:
    """Within, ``layer`` has its weights, and they lie on ``device``; see `placed` and `LayerSource`."""
    with (
        nullcontext() if lender is None else lender.layer(index, changes=changes),
        placed(layer, device),
    ):
        yield


@contextmanager
def placed(layer: torch.nn.Module, device: torch.device | None) -> Iterator[None]:
    """Within, ``layer`` lies on ``device``; afterwards where it was, whatever happened. None leaves it alone."""
    parameter = next(layer.parameters(), None)
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
    """``value`` with every tensor in it on ``device``: tensors, and tuples, lists and dicts of them. None moves nothing."""
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value
