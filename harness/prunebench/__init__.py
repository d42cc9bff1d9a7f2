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
    from prunebench.calibration.masks import kth_lowest, lowest, lowest_overall
    from prunebench.calibration.stream import Stream, Tangent
    from prunebench.errors import PrunebenchError
    from prunebench.measure.task_data import TaskData
    from prunebench.model.anatomy import Anatomy, Block, Cut, anatomy
    from prunebench.model.cache import cache_dir
    from prunebench.model.load import load_pruned
    from prunebench.model.made import MadeAsset
    from prunebench.model.source import ModelAsset
    from prunebench.model.wheel import WheelAsset, fetch
    from prunebench.notebook import load_run, run
    from prunebench.plugin import API_VERSION, hookimpl
    from prunebench.plugin.allocation import Allocation
    from prunebench.plugin.context import Context
    from prunebench.plugin.engine import Engine, EngineContext
    from prunebench.plugin.method import (
        LayerwiseMethod,
        LinearMethod,
        Method,
        Options,
        Pattern,
        Reference,
        Sparsity,
        SparsityOptions,
        pattern_of,
    )
    from prunebench.plugin.metric import Figure, Metric, MetricContext
    from prunebench.plugin.recovery import Recovery, TrainingOptions
    from prunebench.plugin.section import Number, Paragraph, ReportData, ReportSection, Table
    from prunebench.suite.prune import Pruned, prune
    from prunebench.training.loop import Penalty, TrainingLog

_HOMES = {
    "API_VERSION": "prunebench.plugin",
    "Allocation": "prunebench.plugin.allocation",
    "Anatomy": "prunebench.model.anatomy",
    "Block": "prunebench.model.anatomy",
    "Context": "prunebench.plugin.context",
    "Corpus": "prunebench.calibration.corpus",
    "Cut": "prunebench.model.anatomy",
    "Engine": "prunebench.plugin.engine",
    "EngineContext": "prunebench.plugin.engine",
    "Field": "pydantic",
    "Figure": "prunebench.plugin.metric",
    "HubCorpus": "prunebench.calibration.hub",
    "LayerwiseMethod": "prunebench.plugin.method",
    "LinearMethod": "prunebench.plugin.method",
    "LinearStats": "prunebench.calibration.driver",
    "MadeAsset": "prunebench.model.made",
    "Method": "prunebench.plugin.method",
    "Metric": "prunebench.plugin.metric",
    "MetricContext": "prunebench.plugin.metric",
    "ModelAsset": "prunebench.model.source",
    "Number": "prunebench.plugin.section",
    "Options": "prunebench.plugin.method",
    "Paragraph": "prunebench.plugin.section",
    "Pattern": "prunebench.plugin.method",
    "Penalty": "prunebench.training.loop",
    "PrunebenchError": "prunebench.errors",
    "Pruned": "prunebench.suite.prune",
    "Recovery": "prunebench.plugin.recovery",
    "Reference": "prunebench.plugin.method",
    "ReportData": "prunebench.plugin.section",
    "ReportSection": "prunebench.plugin.section",
    "Sparsity": "prunebench.plugin.method",
    "SparsityOptions": "prunebench.plugin.method",
    "Stream": "prunebench.calibration.stream",
    "Table": "prunebench.plugin.section",
    "Tangent": "prunebench.calibration.stream",
    "TaskData": "prunebench.measure.task_data",
    "TrainingLog": "prunebench.training.loop",
    "TrainingOptions": "prunebench.plugin.recovery",
    "WheelAsset": "prunebench.model.wheel",
    "anatomy": "prunebench.model.anatomy",
    "cache_dir": "prunebench.model.cache",
    "fetch": "prunebench.model.wheel",
    "hookimpl": "prunebench.plugin",
    "kth_lowest": "prunebench.calibration.masks",
    "load_pruned": "prunebench.model.load",
    "load_run": "prunebench.notebook",
    "run": "prunebench.notebook",
    "lowest": "prunebench.calibration.masks",
    "lowest_overall": "prunebench.calibration.masks",
    "pattern_of": "prunebench.plugin.method",
    "prune": "prunebench.suite.prune",
}

__all__ = [
    "API_VERSION",
    "Allocation",
    "Anatomy",
    "Block",
    "Context",
    "Corpus",
    "Cut",
    "Engine",
    "EngineContext",
    "Field",
    "Figure",
    "HubCorpus",
    "LayerwiseMethod",
    "LinearMethod",
    "LinearStats",
    "MadeAsset",
    "Method",
    "Metric",
    "MetricContext",
    "ModelAsset",
    "Number",
    "Options",
    "Paragraph",
    "Pattern",
    "Penalty",
    "PrunebenchError",
    "Pruned",
    "Recovery",
    "Reference",
    "ReportData",
    "ReportSection",
    "Sparsity",
    "SparsityOptions",
    "Stream",
    "Table",
    "Tangent",
    "TaskData",
    "TrainingLog",
    "TrainingOptions",
    "WheelAsset",
    "anatomy",
    "cache_dir",
    "fetch",
    "hookimpl",
    "kth_lowest",
    "load_pruned",
    "load_run",
    "lowest",
    "lowest_overall",
    "pattern_of",
    "prune",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
