"""Task scores with their 95 % intervals: a plot for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.groups import models_with
from prunebench_report.data.selection import some_of_every_method
from prunebench_report.data.tasks import TaskKey, tasks_by_key
from prunebench_report.data.uncertainty import Z
from prunebench_report.figures.bars import Interval, intervals
from prunebench_report.figures.svg import DENSE, Figure
from prunebench_report.text import clean, short_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunebench.record.quality import TaskResult
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

MOST_CELLS = 20
MOST_TASKS = 12


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model with tasks, the plots of its tasks, dense first in each."""
    found = []
    for model, members in models_with(given.detailed, tasks_by_key):
        # More rows would be no plot that anybody can read; the table below has all of them.
        shown = some_of_every_method(members, MOST_CELLS)
        keys = list(dict.fromkeys(key for record in shown for key in tasks_by_key(record)))
        figures = []
        for key in keys[:MOST_TASKS]:
            one = _figure(key, shown, given)
            if one is not None:
                figures.append(one)
        left_out = len(members) - len(shown)
        found.append({"model": model, "figures": figures, "legend": (), "left_out": left_out})
    return found


def _figure(key: TaskKey, members: Sequence[Record], given: ReportInput) -> Figure | None:
    """None if no score has a standard error."""
    rows, reference = [], None
    for record in members:
        one = tasks_by_key(record).get(key)
        if one is None or one.value is None or one.stderr is None:
            continue
        dense = record.cell.method.name == "dense"
        factor = _factor(one)
        if dense:
            reference = factor * one.value
        # The ends of the interval that the table's z uses
        half = Z * one.stderr
        method = DENSE if dense else given.methods.index(record.cell.method.name)
        ends = (factor * (one.value - half), factor * (one.value + half))
        label = short_label(given.names[record.id])
        rows.append(Interval(clean(label), factor * one.value, *ends, method, record.id))
    if not rows:
        return None
    first = next(filter(None, (tasks_by_key(record).get(key) for record in members)))
    unit = ", %" if _factor(first) == 100 else ""
    return intervals(clean(first.task), rows, reference, clean(f"{first.headline}{unit}"))


def _factor(one: TaskResult) -> int:
    """Shares are shown in per cent, other metrics as lm-eval reports them."""
    is_share = one.value is not None and 0 <= one.value <= 1
    return 100 if one.headline_metric.higher_is_better and is_share else 1
