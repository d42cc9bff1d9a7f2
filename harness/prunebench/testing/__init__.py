"""For the tests of plugins: small seeded models, and the contract that every plugin should keep.

pytest finds the fixtures `tiny_model`, `calibration` and `run_cell` by itself where prunebench is installed. These names
are looked up when first used, so that a test run that has nothing to do with prunebench pays nothing for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.testing.contract import (
        AllocationContract,
        MethodContract,
        MetricContract,
        RecoveryContract,
    )
    from prunebench.testing.models import (
        FAMILIES,
        tiny_calibration,
        tiny_checkpoint,
        tiny_model,
        tiny_tokenizer,
    )

_HOMES = {
    "AllocationContract": "contract",
    "FAMILIES": "models",
    "MethodContract": "contract",
    "MetricContract": "contract",
    "RecoveryContract": "contract",
    "tiny_calibration": "models",
    "tiny_checkpoint": "models",
    "tiny_model": "models",
    "tiny_tokenizer": "models",
}

__all__ = [
    "FAMILIES",
    "AllocationContract",
    "MethodContract",
    "MetricContract",
    "RecoveryContract",
    "tiny_calibration",
    "tiny_checkpoint",
    "tiny_model",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
