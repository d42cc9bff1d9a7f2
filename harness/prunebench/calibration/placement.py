"""Where a layer computes: the model, the calibration states and the layer at work may lie on different devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
