"""How much of dense quality a cell keeps in what it writes.

Layer pruning can keep multiple choice and lose generation (arXiv 2602.01997), so a suite can ask
for both: the mean over generative tasks of lm-eval and over metrics that judge written text.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from prunebench.measure.quality.task_scores import task_recovery
from prunebench_report.data.columns import Row
from prunebench_report.data.gate import GENERATION_RECOVERY
from prunebench_report.data.metrics import figures_by_key
from prunebench_report.data.tasks import tasks_by_key

if TYPE_CHECKING:
    from prunebench.record.record import Record

Score = tuple[float | None, bool]
"""A value, and whether higher is better."""


def generation_columns(record: Record, dense: Record | None) -> Row:
    """The mean share of dense over all generative figures; empty if there are none."""
    mine, reference = _scores(record), _scores(dense)
    if not mine:
        return {}
    shares = []
    for key, (value, higher) in mine.items():
        other, _ = reference.get(key, (None, True))
        known = value is not None and other is not None
        shares.append(task_recovery(value, other, higher_is_better=higher) if known else None)
    if any(share is None for share in shares):
        return {GENERATION_RECOVERY: None}
    return {GENERATION_RECOVERY: 100 * fmean(share for share in shares if share is not None)}


def _scores(record: Record | None) -> dict[tuple[str, ...], Score]:
    """The generative figures of a record by what identifies them."""
    tasks = {
        ("task", *key): (one.value, one.headline_metric.higher_is_better)
        for key, one in tasks_by_key(record).items()
        if one.generative
    }
    metrics = {
        ("metric", *key): (figure.value, figure.higher_is_better)
        for key, (result, figure) in figures_by_key(record).items()
        if result.generative and figure.name == result.metric
    }
    return tasks | metrics
