"""How much of dense quality a cell keeps in what it writes.

Layer pruning can keep multiple choice and lose generation (arXiv 2602.01997), so a suite can ask
for both: the mean over generative tasks of lm-eval and over metrics that judge written text.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from prunebench.measure.quality.task_scores import task_recovery
from prunebench_report.data.columns import Row
from prunebench_report.data.gate import GENERATION_RECOVERY
from prunebench_report.data.metrics import figures_by_key
from prunebench_report.data.tasks import recovery_error, tasks_by_key
from prunebench_report.data.uncertainty import around, mean_error, percentage

if TYPE_CHECKING:
    from prunebench.record.record import Record


class Score(NamedTuple):
    value: float | None
    higher_is_better: bool
    error: float | None
    """Standard error of the recovery, a share; None if it is not known."""


def generation_columns(record: Record, dense: Record | None) -> Row:
    """The mean share of dense over all generative figures; empty if there are none."""
    mine, reference = _scores(record, dense), _scores(dense, None)
    if not mine:
        return {}
    shares = []
    for key, one in mine.items():
        other = reference.get(key)
        known = one.value is not None and other is not None and other.value is not None
        higher = one.higher_is_better
        shares.append(
            task_recovery(one.value, other.value, higher_is_better=higher)
            if known and other
            else None
        )
    if any(share is None for share in shares):
        return {GENERATION_RECOVERY: None}
    kept = 100 * fmean(share for share in shares if share is not None)
    # Metrics of plugins have no known error, so a mean with one of them has none either.
    low, high = around(kept, percentage(mean_error([one.error for one in mine.values()])))
    return {
        GENERATION_RECOVERY: kept,
        f"{GENERATION_RECOVERY}_low": low,
        f"{GENERATION_RECOVERY}_high": high,
    }


def _scores(record: Record | None, dense: Record | None) -> dict[tuple[str, ...], Score]:
    """The generative figures of a record by what identifies them; errors beside ``dense``."""
    references = tasks_by_key(dense)
    tasks = {
        ("task", *key): Score(
            one.value,
            one.headline_metric.higher_is_better,
            recovery_error(record, dense, one, references.get(key)) if record else None,
        )
        for key, one in tasks_by_key(record).items()
        if one.generative
    }
    metrics = {
        ("metric", *key): Score(figure.value, figure.higher_is_better, None)
        for key, (result, figure) in figures_by_key(record).items()
        if result.generative and figure.name == result.metric
    }
    return tasks | metrics
