"""prunebench: benchmark harness for pruning large language models.

These names are the public API, all that a plugin needs. They are looked up when first used, so that
`import prunebench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import Field

    from prunebench.calibration.corpus import Corpus
    from prunebench.calibration.driver import LinearStats
    from prunebench.calibration.hub import HubCorpus
    from prunebench.errors import PrunebenchError
    from prunebench.model.anatomy import Anatomy, anatomy
    from prunebench.model.cache import cache_dir
    from prunebench.model.source import ModelAsset
    from prunebench.model.wheel import WheelAsset, fetch
    from prunebench.plugin import API_VERSION, hookimpl
    from prunebench.plugin.context import Context
    from prunebench.plugin.method import (
        LinearMethod,
        Method,
        Options,
        Pattern,
        Reference,
        Sparsity,
        SparsityOptions,
        pattern_of,
    )

_HOMES = {
    "API_VERSION": "prunebench.plugin",
    "Anatomy": "prunebench.model.anatomy",
    "Context": "prunebench.plugin.context",
    "Corpus": "prunebench.calibration.corpus",
    "Field": "pydantic",
    "HubCorpus": "prunebench.calibration.hub",
    "LinearMethod": "prunebench.plugin.method",
    "LinearStats": "prunebench.calibration.driver",
    "Method": "prunebench.plugin.method",
    "ModelAsset": "prunebench.model.source",
    "Options": "prunebench.plugin.method",
    "Pattern": "prunebench.plugin.method",
    "PrunebenchError": "prunebench.errors",
    "Reference": "prunebench.plugin.method",
    "Sparsity": "prunebench.plugin.method",
    "SparsityOptions": "prunebench.plugin.method",
    "WheelAsset": "prunebench.model.wheel",
    "anatomy": "prunebench.model.anatomy",
    "cache_dir": "prunebench.model.cache",
    "fetch": "prunebench.model.wheel",
    "hookimpl": "prunebench.plugin",
    "pattern_of": "prunebench.plugin.method",
}

__all__ = [
    "API_VERSION",
    "Anatomy",
    "Context",
    "Corpus",
    "Field",
    "HubCorpus",
    "LinearMethod",
    "LinearStats",
    "Method",
    "ModelAsset",
    "Options",
    "Pattern",
    "PrunebenchError",
    "Reference",
    "Sparsity",
    "SparsityOptions",
    "WheelAsset",
    "anatomy",
    "cache_dir",
    "fetch",
    "hookimpl",
    "pattern_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
