"""prunebench: benchmark harness for pruning large language models.

These names are the public API, all that a plugin needs. They are looked up when first used, so that
`import prunebench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import Field

    from prunebench.app.notebook import prune, run
    from prunebench.app.prune import Pruned
    from prunebench.app.results import load_run
    from prunebench.errors import PrunebenchError
    from prunebench.layerwise.masks import kth_lowest, lowest, lowest_overall
    from prunebench.layerwise.partial_forward import Stream, Tangent
    from prunebench.layerwise.walk import LinearStats
    from prunebench.measure.quality.task_data import TaskData
    from prunebench.model.anatomy import Anatomy, Block, anatomy
    from prunebench.model.cache import cache_dir
    from prunebench.model.families import Cut
    from prunebench.model.generated import GeneratedAsset
    from prunebench.model.load import load_pruned
    from prunebench.model.source import ModelAsset
    from prunebench.model.wheel import WheelAsset
    from prunebench.plugin import API_VERSION, hookimpl
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.context import Context
    from prunebench.plugin.api.engine import Engine, EngineContext
    from prunebench.plugin.api.method import (
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
    from prunebench.plugin.api.metric import Figure, Metric, MetricContext
    from prunebench.plugin.api.recovery import Recovery, TrainingOptions
    from prunebench.plugin.api.report_section import (
        Number,
        Paragraph,
        ReportData,
        ReportSection,
        Table,
    )
    from prunebench.text.corpus import Corpus
    from prunebench.text.hub import HubCorpus
    from prunebench.training.loop import Penalty, TrainingLog

_HOMES = {
    "API_VERSION": "prunebench.plugin",
    "Allocation": "prunebench.plugin.api.allocation",
    "Anatomy": "prunebench.model.anatomy",
    "Block": "prunebench.model.anatomy",
    "Context": "prunebench.plugin.api.context",
    "Corpus": "prunebench.text.corpus",
    "Cut": "prunebench.model.families",
    "Engine": "prunebench.plugin.api.engine",
    "EngineContext": "prunebench.plugin.api.engine",
    "Field": "pydantic",
    "Figure": "prunebench.plugin.api.metric",
    "GeneratedAsset": "prunebench.model.generated",
    "HubCorpus": "prunebench.text.hub",
    "LayerwiseMethod": "prunebench.plugin.api.method",
    "LinearMethod": "prunebench.plugin.api.method",
    "LinearStats": "prunebench.layerwise.walk",
    "Method": "prunebench.plugin.api.method",
    "Metric": "prunebench.plugin.api.metric",
    "MetricContext": "prunebench.plugin.api.metric",
    "ModelAsset": "prunebench.model.source",
    "Number": "prunebench.plugin.api.report_section",
    "Options": "prunebench.plugin.api.method",
    "Paragraph": "prunebench.plugin.api.report_section",
    "Pattern": "prunebench.plugin.api.method",
    "Penalty": "prunebench.training.loop",
    "PrunebenchError": "prunebench.errors",
    "Pruned": "prunebench.app.prune",
    "Recovery": "prunebench.plugin.api.recovery",
    "Reference": "prunebench.plugin.api.method",
    "ReportData": "prunebench.plugin.api.report_section",
    "ReportSection": "prunebench.plugin.api.report_section",
    "Sparsity": "prunebench.plugin.api.method",
    "SparsityOptions": "prunebench.plugin.api.method",
    "Stream": "prunebench.layerwise.partial_forward",
    "Table": "prunebench.plugin.api.report_section",
    "Tangent": "prunebench.layerwise.partial_forward",
    "TaskData": "prunebench.measure.quality.task_data",
    "TrainingLog": "prunebench.training.loop",
    "TrainingOptions": "prunebench.plugin.api.recovery",
    "WheelAsset": "prunebench.model.wheel",
    "anatomy": "prunebench.model.anatomy",
    "cache_dir": "prunebench.model.cache",
    "hookimpl": "prunebench.plugin",
    "kth_lowest": "prunebench.layerwise.masks",
    "load_pruned": "prunebench.model.load",
    "load_run": "prunebench.app.results",
    "lowest": "prunebench.layerwise.masks",
    "lowest_overall": "prunebench.layerwise.masks",
    "pattern_of": "prunebench.plugin.api.method",
    "prune": "prunebench.app.notebook",
    "run": "prunebench.app.notebook",
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
    "GeneratedAsset",
    "HubCorpus",
    "LayerwiseMethod",
    "LinearMethod",
    "LinearStats",
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
