"""A context like the one that a method gets, to try its tools on a small model."""

from __future__ import annotations

from typing import Any

from prunebench.model.anatomy import anatomy
from prunebench.plugin.api.context import Context
from prunebench.testing.models import tiny_calibration


def tiny_context(model: Any, seed: int = 0) -> Context:
    """The context of a new cell for ``model``, with `tiny_calibration` as its windows."""
    return Context(tiny_calibration(), seed, list(range(len(anatomy(model).layers))))
