"""Let some parameters of a model learn for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def learning(model: Any, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Gradients for ``parameters`` only, inside the block.

    Afterwards `requires_grad` is as before, and no parameter of ``model`` has a gradient.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad = False
    for parameter in parameters:
        parameter.requires_grad = True
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad = required
