"""The hooks that a plugin can implement.

A registering hook returns a class, an object, or a list of them. If it raises, or returns something
invalid, that is a problem of this plugin, and the other plugins work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from prunebench.plugin import NAME

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.measure.quality.task_data import TaskData
    from prunebench.model.source import ModelAsset
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.engine import Engine
    from prunebench.plugin.api.method import Method
    from prunebench.plugin.api.metric import Metric
    from prunebench.plugin.api.recovery import Recovery
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.plugin.api.runtime import Runtime
    from prunebench.record.record import Record
    from prunebench.text.corpus import Corpus

# The bodies are empty: pluggy uses the names, the arguments and the docstrings.
_spec = pluggy.HookspecMarker(NAME)


@_spec
def prunebench_register_method() -> type[Method] | list[type[Method]]:  # type: ignore[empty-body]
    """Pruning methods: subclasses of `prunebench.Method`, each with a `name`.

    Added in API 1.
    """


@_spec
def prunebench_register_allocation() -> (  # type: ignore[empty-body]
    type[Allocation] | list[type[Allocation]]
):
    """Ways to spread a sparsity over layers: subclasses of `prunebench.Allocation`.

    Added in API 1.
    """


@_spec
def prunebench_register_recovery() -> (  # type: ignore[empty-body]
    type[Recovery] | list[type[Recovery]]
):
    """Repairs of pruned models: subclasses of `prunebench.Recovery`, each with a `name`.

    Added in API 1.
    """


@_spec
def prunebench_register_model_source() -> ModelAsset | list[ModelAsset]:  # type: ignore[empty-body]
    """Models that a suite can name: `prunebench.ModelAsset` objects.

    Added in API 1.
    """


@_spec
def prunebench_register_corpus() -> Corpus | list[Corpus]:  # type: ignore[empty-body]
    """Text corpora that a suite can name: instances of `prunebench.Corpus`.

    Added in API 1.
    """


@_spec
def prunebench_register_task_data() -> TaskData | list[TaskData]:  # type: ignore[empty-body]
    """Rows for tasks of lm-eval: instances of `prunebench.TaskData`.

    Added in API 1.
    """


@_spec
def prunebench_register_metric() -> type[Metric] | list[type[Metric]]:  # type: ignore[empty-body]
    """Measures of quality beside perplexity and tasks: subclasses of `prunebench.Metric`.

    Added in API 1.
    """


@_spec
def prunebench_register_report_section() -> (  # type: ignore[empty-body]
    type[ReportSection] | list[type[ReportSection]]
):
    """Sections of the report: subclasses of `prunebench.ReportSection`.

    Added in API 1.
    """


@_spec
def prunebench_register_engine() -> type[Engine] | list[type[Engine]]:  # type: ignore[empty-body]
    """Places where cells can run: subclasses of `prunebench.Engine`, each with a `name`.

    Added in API 1.
    """


@_spec
def prunebench_register_runtime() -> type[Runtime] | list[type[Runtime]]:  # type: ignore[empty-body]
    """Engines that serve models: subclasses of `prunebench.Runtime`, each with a `name`.

    Added in API 1.
    """


@_spec
def prunebench_cell_started(cell: Cell) -> None:
    """Observe a cell that is about to start. Called in the process of the run.

    Added in API 1.
    """


@_spec
def prunebench_cell_finished(cell: Cell, record: Record) -> None:
    """Observe the result of a cell, after it is stored; failed cells have a record too.

    Called in the process of the run. Added in API 1.
    """
