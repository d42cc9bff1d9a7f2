"""The hooks. A registering hook returns a class, an object, or a list of them; an exception in one plugin's
implementation becomes a problem of that plugin and stops no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from prunebench.plugin import NAME

if TYPE_CHECKING:
    from prunebench.measure.quality.task_data import TaskData
    from prunebench.model.source import ModelAsset
    from prunebench.plugin.api.allocation import Allocation
    from prunebench.plugin.api.engine import Engine
    from prunebench.plugin.api.method import Method
    from prunebench.plugin.api.metric import Metric
    from prunebench.plugin.api.recovery import Recovery
    from prunebench.plugin.api.report_section import ReportSection
    from prunebench.text.corpus import Corpus

_spec = pluggy.HookspecMarker(NAME)


@_spec
def prunebench_register_method() -> type[Method] | list[type[Method]]:  # type: ignore[empty-body]
    """Pruning methods: subclasses of `prunebench.Method`, each with a `name`. Added in API 1."""


@_spec
def prunebench_register_allocation() -> type[Allocation] | list[type[Allocation]]:  # type: ignore[empty-body]
    """How a share is spread over layers: subclasses of `prunebench.Allocation`, each with a `name`. Added in API 1."""


@_spec
def prunebench_register_recovery() -> type[Recovery] | list[type[Recovery]]:  # type: ignore[empty-body]
    """Repairs of pruned models: subclasses of `prunebench.Recovery`, each with a `name`. Added in API 1."""


@_spec
def prunebench_register_model_source() -> ModelAsset | list[ModelAsset]:  # type: ignore[empty-body]
    """Models that a suite can name: `prunebench.ModelAsset` objects. Added in API 1."""


@_spec
def prunebench_register_corpus() -> Corpus | list[Corpus]:  # type: ignore[empty-body]
    """Text corpora that a suite can name: instances of `prunebench.Corpus`. Added in API 1."""


@_spec
def prunebench_register_task_data() -> TaskData | list[TaskData]:  # type: ignore[empty-body]
    """Rows for tasks of lm-eval: instances of `prunebench.TaskData`. Added in API 1."""


@_spec
def prunebench_register_metric() -> type[Metric] | list[type[Metric]]:  # type: ignore[empty-body]
    """Figures beside perplexity and tasks: subclasses of `prunebench.Metric`, each with a `name`. Added in API 1."""


@_spec
def prunebench_register_report_section() -> type[ReportSection] | list[type[ReportSection]]:  # type: ignore[empty-body]
    """Sections of the report: subclasses of `prunebench.ReportSection`, data and text only. Added in API 1."""


@_spec
def prunebench_register_engine() -> type[Engine] | list[type[Engine]]:  # type: ignore[empty-body]
    """Where cells run: subclasses of `prunebench.Engine`, each with a `name`. Added in API 1."""


@_spec
def prunebench_cell_started(cell: Any) -> None:
    """Observe: called in the run's own process before a cell (`prunebench.experiment.cell.Cell`) starts. Added in API 1."""


@_spec
def prunebench_cell_finished(cell: Any, record: Any) -> None:
    """Observe: called in the run's own process after the record is stored, also for failed cells. Added in API 1."""
