"""Quality by task: methods against tasks, and every score of one cell.

A difference from dense is significant if |z| > 1.96, with
z = difference / sqrt(stderr^2 + stderr of dense^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prunebench.measure.quality.task_scores import flips, z_score
from prunebench_report.data.tasks import TaskKey, task_protocol, tasks_by_key
from prunebench_report.data.uncertainty import mean_error
from prunebench_report.sections.score_tables import ScoreCell, score_cell, score_tables
from prunebench_report.text import MISSING, Facts, clean, fixed, number, plus_minus

if TYPE_CHECKING:
    from prunebench.record.quality import TaskResult
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

SIGNIFICANT = 1.96
"""|z| above which two scores differ at the 5 % level."""


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model with tasks, a table of cells against tasks; the first column is the mean."""
    return score_tables(
        given,
        tasks_by_key,
        head=lambda one: (one.task, f"{one.headline}, %" if _is_share(one) else one.headline),
        cell=_cell,
        protocol=task_protocol,
        mean=_mean,
    )


def facts(record: Record) -> Facts:
    """Every score of a cell in words, parts of groups included."""
    found = []
    for one in record.quality.tasks if record.quality else []:
        texts = []
        for metric in one.metrics:
            filtered = "" if metric.filter == "none" else f" ({metric.filter})"
            # lm-eval reports accuracies as shares; whatever is outside 0 to 1 is something else.
            factor = 100 if metric.value is not None and 0 <= metric.value <= 1 else 1
            texts.append(f"{metric.metric}{filtered} {_score(metric.value, metric.stderr, factor)}")
        name = f"{one.group} / {one.task}" if one.group else one.task
        if one.one_by_one is not None:
            texts.append(f"each choice ran alone: {one.one_by_one}")
        found.append((clean(name), clean(", ".join(texts))))
    return found


def _mean(
    keys: Sequence[TaskKey], mine: Mapping[TaskKey, TaskResult], dense: Mapping[TaskKey, TaskResult]
) -> ScoreCell:
    """The mean score, if the cell has all tasks of the table and all are shares."""
    values = [one.value for one in mine.values() if one.value is not None]
    if not all(map(_is_share, mine.values())) or not len(values) == len(mine) == len(keys):
        return score_cell()
    # The note needs all scores of dense: otherwise the two means are over different tasks.
    references = [dense[key].value for key in mine if key in dense]
    known = [value for value in references if value is not None]
    note = None
    if len(known) == len(values):
        note = plus_minus(100 * (fmean(values) - fmean(known)))
    error = mean_error([one.stderr for one in mine.values()])
    return score_cell(_score(fmean(values), error, 100), note)


def _cell(one: TaskResult | None, dense: TaskResult | None) -> ScoreCell:
    """A score with its standard error, and in words whether it differs from dense's."""
    if one is None or one.value is None:
        return score_cell()
    factor = 100 if _is_share(one) else 1
    text = _score(one.value, one.stderr, factor)
    if dense is None or dense.value is None:
        return score_cell(text)
    change = plus_minus(factor * (one.value - dense.value))
    z = z_score(one.value, one.stderr, dense.value, dense.stderr)
    flipped = flips([one], [dense]).answers
    if flipped is not None:
        # Equal scores can hide other answers.
        change = f"{fixed(100 * flipped, 1)} % flipped; {change}"
    if z is None:
        return score_cell(text, change)
    if abs(z) <= SIGNIFICANT:
        return score_cell(text, f"{change}, within error")
    tone = "better" if (z > 0) == one.headline_metric.higher_is_better else "worse"
    return score_cell(text, f"{change}, {tone}", tone)


def _score(value: float | None, stderr: float | None, factor: int) -> str:
    """Shares in per cent (``factor`` 100), other metrics as lm-eval reports them."""
    if value is None:
        return MISSING
    if factor == 1:
        return number(value, 4) + ("" if stderr is None else f" ± {number(stderr, 2)}")
    return fixed(value * factor, 1) + ("" if stderr is None else f" ± {fixed(stderr * factor, 1)}")


def _is_share(one: TaskResult) -> bool:
    """Whether the headline score is an accuracy between 0 and 1."""
    value = one.value
    return one.headline_metric.higher_is_better and value is not None and 0 <= value <= 1
