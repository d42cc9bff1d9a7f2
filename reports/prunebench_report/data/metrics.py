"""Figures of metric plugins beside dense, as columns of the table.

A figure's recovery is value / dense, or dense / value if lower is better, provided that both are
above zero. Plugins report no uncertainty, so a difference from dense is shown but not judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench.measure.quality.task_scores import task_recovery
from prunebench_report.data.columns import Row, numbered

if TYPE_CHECKING:
    from prunebench.record.quality import MetricFigure, MetricResult
    from prunebench.record.record import Record

FigureKey = tuple[str, str]
"""What two figures must share to be in one column: the metric with all its options, the name."""

Figure = tuple["MetricResult", "MetricFigure"]


def figures_by_key(record: Record | None) -> dict[FigureKey, Figure]:
    if record is None or record.quality is None:
        return {}
    # The record has the results of the metrics that ran; a failed cell may have fewer than planned.
    return {
        (json.dumps(ref.identity(), sort_keys=True), figure.name): (result, figure)
        for ref, result in zip(record.cell.metrics, record.quality.metrics, strict=False)
        for figure in result.figures
    }


def figure_keys(records: Sequence[Record]) -> list[FigureKey]:
    """Every figure of these records once, in order of appearance."""
    return list(dict.fromkeys(key for record in records for key in figures_by_key(record)))


def metric_columns(record: Record, dense: Record | None, keys: Sequence[FigureKey]) -> Row:
    """One numbered set for each of ``keys``, so that a figure has the same number in every row."""
    mine, references = figures_by_key(record), figures_by_key(dense)
    row: Row = {}
    for index, key in enumerate(keys):
        if key not in mine:
            continue  # its number stays free, so that columns keep their meaning
        result, figure = mine[key]
        share = figure_recovery(figure, references[key][1] if key in references else None)
        values = {
            "metric": figure_name(result, figure),
            "metric_unit": figure.unit,
            "metric_higher_is_better": figure.higher_is_better,
            "metric_value": figure.value,
            "metric_recovery_percent": None if share is None else 100 * share,
            "metric_reason": figure.reason,
            "metric_protocol": metric_protocol(result),
        }
        row |= {numbered(name, index): value for name, value in values.items()}
    return row


def metric_protocol(result: MetricResult) -> str:
    """Everything that identifies a figure, in one line."""
    windows = f", {result.windows} windows of {result.window} tokens" if result.windows else ""
    text = f", {result.text}{windows}" if result.text else ""
    return f"{result.label}{text}, {result.distribution} {result.version}"


def figure_name(result: MetricResult, figure: MetricFigure) -> str:
    return result.label if figure.name == result.metric else f"{result.label}: {figure.name}"


def figure_recovery(figure: MetricFigure, dense: MetricFigure | None) -> float | None:
    """The share of dense quality that a figure keeps; None if a ratio means nothing."""
    if dense is None or not figure.value or not dense.value:
        return None
    share = task_recovery(figure.value, dense.value, higher_is_better=figure.higher_is_better)
    return share if share is not None and share > 0 else None
