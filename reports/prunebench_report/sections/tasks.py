"""Scores of tasks beside dense: columns of the one table, and the section that sets methods against tasks.

A score's recovery is score / dense (dense / score where lower is better); a cell's is the mean over the tasks that its
suite names. A difference counts where |z| > 1.96, z = difference / sqrt(stderr^2 + stderr of dense^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prunebench.measure.quality.task_scores import task_recovery, z_score
from prunebench_report.data import columns as fields
from prunebench_report.data.groups import models_with
from prunebench_report.text import MISSING, clean, finite, fixed, number, signs

if TYPE_CHECKING:
    from prunebench.record.quality import TaskResult
    from prunebench.record.record import Record

SIGNIFICANT = 1.96
"""|z| above which two scores differ at the level of 5 %."""

RECOVERY = "tasks_recovery_percent"


LEAST_QUESTIONS = 100
"""A task on fewer questions has a standard error of five points and more: no gate can rest on that."""


def quality_key(row: Mapping[str, Any]) -> str:
    """The column that the gate judges: the tasks' mean recovery where each was asked enough, else that of perplexity."""
    return RECOVERY if judged_by_tasks(row) else "recovery_percent"


def judged_by_tasks(row: Mapping[str, Any]) -> bool:
    """Whether the tasks decide: on `LEAST_QUESTIONS` each, or for want of a perplexity."""
    if not row.get("tasks_run"):
        return False
    return (row.get("tasks_questions") or 0) >= LEAST_QUESTIONS or row.get("perplexity") is None


def asked(record: Record | None) -> list[TaskResult]:
    """The tasks that the suite names; parts of a group are behind its aggregate."""
    return [one for one in record.quality.tasks if one.asked] if record and record.quality else []


def columns(record: Record, dense: Record | None, gate: float) -> dict[str, Any]:
    """The cells of one row; ``gate`` is a share, e.g. 0.95. Empty where no tasks were run."""
    scores, theirs = asked(record), _by_name(asked(dense))
    if not scores:
        return {}
    row: dict[str, Any] = {}
    recoveries = []
    for index, one in enumerate(scores):
        other = theirs.get(_name(one))
        share = None
        if other is not None:
            better = one.headline_metric.higher_is_better
            share = task_recovery(one.value, other.value, higher_is_better=better)
        recoveries.append(share)
        values = {
            "task": one.task,
            "task_metric": one.headline,
            "task_value": one.value,
            "task_stderr": one.stderr,
            "task_recovery_percent": None if share is None else 100 * share,
            "task_z": other and z_score(one.value, one.stderr, other.value, other.stderr),
            "task_protocol": protocol(one),
        }
        row |= {fields.numbered(key, index): finite(value) for key, value in values.items()}
    known = [share for share in recoveries if share is not None]
    whole = len(known) == len(recoveries)
    values_known = [one.value for one in scores if one.value is not None]
    row["tasks_run"] = len(scores)
    row["tasks_questions"] = min(one.samples for one in scores)
    row["tasks_mean"] = fmean(values_known) if len(values_known) == len(scores) else None
    row[RECOVERY] = 100 * fmean(known) if whole else None
    if row["tasks_questions"] >= LEAST_QUESTIONS or not _perplexities(record):
        row["gate_passed"] = row[RECOVERY] >= 100 * gate if whole else None
    return row


def _perplexities(record: Record | None) -> bool:
    return bool(record and record.quality and record.quality.perplexity)


def protocol(one: TaskResult) -> str:
    """Everything that names a score, in one line."""
    shots = "shots as its tasks have them" if one.num_fewshot is None else f"{one.num_fewshot}-shot"
    total = f" of {one.samples_total:,}" if one.samples_total not in (None, one.samples) else ""
    version = f", task version {one.version}" if one.version else ""
    return f"{one.task} {one.headline}, {shots}, {one.samples:,}{total} questions, rows from {one.data}, lm-eval {one.harness}{version}"


def section(
    records: Sequence[Record], dense_of: Mapping[str, str | None], named: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each model with tasks a table of methods against tasks.

    ``dense_of`` has each cell's dense cell, ``named`` its name.
    """
    by_id = {record.id: record for record in records}
    tables = []
    for model, members in models_with(records, asked):
        heads = {_name(one): one for record in members for one in asked(record)}
        rows = []
        for record in members:
            dense = by_id.get(dense_of.get(record.id) or "")
            rows.append(
                _row(record, None if dense is record else dense, list(heads), named[record.id])
            )
        tables.append(
            {
                "model": model,
                "tasks": [
                    {"name": clean(one.task), "metric": _unit(one)} for one in heads.values()
                ],
                "rows": rows,
                "protocols": [clean(protocol(one)) for one in heads.values()],
            }
        )
    return tables


def parts(record: Record) -> list[tuple[str, str]]:
    """Every score of a cell in words, parts of groups included."""
    found = []
    for one in record.quality.tasks if record.quality else []:
        told = ", ".join(
            f"{metric.metric}{'' if metric.filter == 'none' else f' ({metric.filter})'} {_text(metric.value, metric.stderr)}"
            for metric in one.metrics
        )
        place = f"{one.group} / {one.task}" if one.group else one.task
        found.append((clean(place), clean(told)))
    return found


def _row(
    record: Record, dense: Record | None, order: Sequence[tuple[str, ...]], name: str
) -> dict[str, Any]:
    mine, theirs = _by_name(asked(record)), _by_name(asked(dense))
    cells = [_cell(mine.get(key), theirs.get(key)) for key in order]
    values = [one.value for one in mine.values() if one.value is not None]
    others = [theirs[key].value for key in mine if key in theirs]
    known = [value for value in others if value is not None]
    comparable = all(_scale(one) > 1 for one in mine.values())
    mean: dict[str, Any] = {"text": MISSING, "note": None, "tone": None}
    if comparable and len(values) == len(mine) == len(order):
        mean["text"] = fixed(100 * fmean(values), 1)
        if len(known) == len(values):
            mean["note"] = signs(f"{100 * (fmean(values) - fmean(known)):+.1f}")
    return {
        "id": record.id,
        "name": clean(name),
        "dense": record.cell.method.name == "dense",
        "cells": [mean, *cells],
    }


def _cell(one: TaskResult | None, dense: TaskResult | None) -> dict[str, Any]:
    """A score with its error; against dense the difference, and whether it is one, in words."""
    if one is None or one.value is None:
        return {"text": MISSING, "note": None, "tone": None}
    scale = _scale(one)
    shown = {"text": _text(one.value, one.stderr, scale), "note": None, "tone": None}
    if dense is None or dense.value is None:
        return shown
    z = z_score(one.value, one.stderr, dense.value, dense.stderr)
    change = signs(f"{scale * (one.value - dense.value):+.1f}")
    if z is None or abs(z) <= SIGNIFICANT:
        return {**shown, "note": change if z is None else f"{change}, within error"}
    better = (z > 0) == one.headline_metric.higher_is_better
    word = "better" if better else "worse"
    return {**shown, "note": f"{change}, {word}", "tone": word}


def _text(value: float | None, stderr: float | None, scale: float | None = None) -> str:
    if value is None:
        return MISSING
    factor = scale or (100.0 if 0 <= value <= 1 else 1.0)
    text = fixed(value * factor, 1) if factor > 1 else number(value, 4)
    if stderr is None:
        return text
    return f"{text} ± {fixed(stderr * factor, 1) if factor > 1 else number(stderr, 2)}"


def _scale(one: TaskResult) -> float:
    """Accuracies are shares and shown in per cent; other metrics stand as lm-eval gives them."""
    return (
        100.0
        if one.headline_metric.higher_is_better and one.value is not None and 0 <= one.value <= 1
        else 1.0
    )


def _unit(one: TaskResult) -> str:
    return f"{clean(one.headline)}, %" if _scale(one) > 1 else clean(one.headline)


def _name(one: TaskResult) -> tuple[str, ...]:
    """What two scores must share before they stand in one column."""
    return (
        one.task,
        one.headline,
        one.data,
        str(one.num_fewshot),
        str(one.version),
        str(one.samples),
    )


def _by_name(scores: Sequence[TaskResult]) -> dict[tuple[str, ...], TaskResult]:
    return {_name(one): one for one in scores}
