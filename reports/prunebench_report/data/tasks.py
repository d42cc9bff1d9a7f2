"""Task scores beside dense, as columns of the table.

A score's recovery is score / dense (dense / score if lower is better); a cell's recovery is the
mean over the tasks that its suite names.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from prunebench.measure.quality.task_scores import Flips, flips, task_recovery, z_score
from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.gate import TASKS_RECOVERY
from prunebench_report.data.uncertainty import (
    around,
    mean_error,
    percentage,
    score_recovery_error,
)

if TYPE_CHECKING:
    from prunebench.record.quality import TaskResult
    from prunebench.record.record import Record

TASKS_FLIPS = "tasks_flips_percent"

TaskKey = tuple[str, ...]
"""What two scores must share before they may be compared."""


def suite_tasks(record: Record | None) -> list[TaskResult]:
    """The tasks that the suite names; of a group the aggregate, not its parts."""
    return [one for one in record.quality.tasks if one.asked] if record and record.quality else []


def tasks_by_key(record: Record | None) -> dict[TaskKey, TaskResult]:
    return {task_key(one): one for one in suite_tasks(record)}


def task_key(one: TaskResult) -> TaskKey:
    return (
        one.task,
        one.headline,
        # Other data, shots, versions or numbers of questions make another task.
        one.data,
        str(one.num_fewshot),
        str(one.version),
        str(one.samples),
    )


def task_columns(record: Record, dense: Record | None) -> Row:
    """One numbered set for each task, and the means over tasks; empty if no tasks ran."""
    scores, references = suite_tasks(record), tasks_by_key(dense)
    if not scores:
        return {}
    row: Row = {}
    recoveries, errors, flipped = [], [], []
    for index, one in enumerate(scores):
        reference = references.get(task_key(one))
        recovery = _recovery(one, reference)
        error = recovery_error(record, dense, one, reference)
        recoveries.append(recovery)
        errors.append(error)
        changed = task_flips(record, dense, one, reference)
        flipped.append(changed.answers)
        values = {
            "task": one.task,
            "task_metric": one.headline,
            "task_value": one.value,
            "task_stderr": one.stderr,
            "task_recovery_percent": percentage(recovery),
            "task_recovery_stderr_percent": percentage(error),
            "task_z": reference
            and z_score(one.value, one.stderr, reference.value, reference.stderr),
            "task_flips_percent": percentage(changed.answers),
            "task_correct_flips_percent": percentage(changed.correct),
            "task_protocol": task_protocol(one),
        }
        row |= {numbered(key, index): value for key, value in values.items()}
    # The mean of ratios, so that tasks with high scores do not outweigh the others.
    kept = percentage(_mean(recoveries))
    low, high = around(kept, percentage(mean_error(errors)))
    return {
        **row,
        "tasks_run": len(scores),
        "tasks_questions": min(one.samples for one in scores),
        "tasks_mean": _mean([one.value for one in scores]),
        "tasks_mean_stderr": mean_error([one.stderr for one in scores]),
        TASKS_RECOVERY: kept,
        f"{TASKS_RECOVERY}_low": low,
        f"{TASKS_RECOVERY}_high": high,
        TASKS_FLIPS: percentage(_mean(flipped)),
    }


def task_flips(
    record: Record, dense: Record | None, one: TaskResult, reference: TaskResult | None
) -> Flips:
    """How often the answers of ``record`` to a task differ from the dense model's."""
    if not (dense and reference and record.quality and dense.quality):
        return Flips(None, None)
    # Rows that changed on the hub are other questions.
    if one.data_commit != reference.data_commit:
        return Flips(None, None)
    return flips(record.quality.parts(one), dense.quality.parts(reference))


def recovery_error(
    record: Record, dense: Record | None, one: TaskResult, reference: TaskResult | None
) -> float | None:
    """The standard error of a task's recovery, a share; None for dense itself or if unknown."""
    if dense is None or reference is None or dense.id == record.id:
        return None
    if record.quality is None or dense.quality is None:
        return None
    parts, dense_parts = record.quality.parts(one), dense.quality.parts(reference)
    return score_recovery_error(one, reference, parts, dense_parts)


def task_protocol(one: TaskResult) -> str:
    """Everything that identifies a score, in one line."""
    shots = "shots as its tasks have them" if one.num_fewshot is None else f"{one.num_fewshot}-shot"
    total = f" of {one.samples_total:,}" if one.samples_total not in (None, one.samples) else ""
    version = f", task version {one.version}" if one.version else ""
    return (
        f"{one.task} {one.headline}, {shots}, {one.samples:,}{total} questions, "
        f"rows from {one.data}, lm-eval {one.harness}{version}"
    )


def _recovery(one: TaskResult, dense: TaskResult | None) -> float | None:
    """The share of dense quality."""
    if dense is None:
        return None
    higher = one.headline_metric.higher_is_better
    return task_recovery(one.value, dense.value, higher_is_better=higher)


def _mean(values: list[float | None]) -> float | None:
    """None if a value is missing: a mean over fewer tasks could not be compared."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
