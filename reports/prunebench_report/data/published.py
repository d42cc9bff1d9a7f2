"""Published figures beside measured ones: columns of the table, and the measured value itself."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from prunebench.record.expectations import MODEL_METRICS, PERPLEXITY, REMOVED_LAYERS, TASKS_MEAN
from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.quality import perplexities
from prunebench_report.data.tasks import suite_tasks

if TYPE_CHECKING:
    from prunebench.record.expectations import Expectation
    from prunebench.record.record import Record


def published_columns(record: Record, figures: Sequence[Expectation]) -> Row:
    """One numbered set for each of ``figures`` that this cell should reproduce."""
    row: Row = {}
    # Numbered by cell, so the same number means different figures in different rows.
    mine = [figure for figure in figures if record.id in figure.cells]
    for index, figure in enumerate(mine):
        value = measured(record, figure) if record.status == "ok" else None
        difference = relative_difference(figure, value)
        values = {
            "published_metric": metric_in_words(figure),
            "published_value": figure.value,
            "published_measured": value,
            "published_difference": difference,
            "published_agrees": agrees(figure, difference),
            "published_source": figure.source,
        }
        row |= {numbered(key, index): one for key, one in values.items()}
    return row


def measured(record: Record, figure: Expectation) -> float | None:
    """The cell's own value of a published figure, in the figure's unit; None if not measured."""
    if figure.metric == PERPLEXITY:
        return _perplexity(record, figure)
    if figure.metric == "speedup":
        timed = record.speed.latency[0] if record.speed and record.speed.latency else None
        ratio = timed.inter_token_speedup if timed else None
        return ratio.estimate if ratio else None
    if figure.metric == REMOVED_LAYERS:
        gone = record.audit.removed_layers if record.audit else None
        return None if gone is None else float(len(set(figure.layers) & set(gone)))
    if figure.metric in MODEL_METRICS:
        value = getattr(record.audit, figure.metric, None)
        return None if value is None else float(value)
    scores = _scores(record)
    if figure.metric != TASKS_MEAN:
        return scores.get(figure.metric)
    wanted = figure.tasks or tuple(scores)
    # A mean over fewer tasks than the publication's would not be comparable.
    complete = wanted and scores.keys() >= set(wanted)
    return fmean(scores[name] for name in wanted) if complete else None


def _perplexity(record: Record, figure: Expectation) -> float | None:
    """The first perplexity of the figure's corpus, protocol and, if it names one, window length."""
    for one in perplexities(record):
        same_length = figure.length in {None, one.window}
        if (one.corpus, one.protocol) == (figure.corpus, figure.protocol) and same_length:
            return one.perplexity
    return None


def _scores(record: Record) -> dict[str, float]:
    """The headline score of each task, in per cent."""
    values = {one.task: one.value for one in suite_tasks(record)}
    return {task: 100 * value for task, value in values.items() if value is not None}


def relative_difference(figure: Expectation, value: float | None) -> float | None:
    """Measured / published - 1; None if nothing was measured or the ratio means nothing."""
    if value is None:
        return None
    if figure.value == 0:  # e.g. no parameters removed: equal, or no ratio
        return 0.0 if value == 0 else None
    return value / figure.value - 1


def agrees(figure: Expectation, difference: float | None) -> bool | None:
    return None if difference is None else abs(difference) <= figure.tolerance


def metric_in_words(figure: Expectation) -> str:
    """What a figure reports."""
    if figure.metric == PERPLEXITY:
        window = f", windows of {figure.length}" if figure.length else ""
        return f"perplexity, {figure.corpus}{window}, {figure.protocol} protocol"
    if figure.metric == TASKS_MEAN:
        return f"mean of {', '.join(figure.tasks) or 'the tasks'}, %"
    words = {
        "parameters": "parameters",
        "removed_share": "share of parameters removed",
        "speedup": "speed-up per token",
        REMOVED_LAYERS: f"removed layers among {', '.join(map(str, figure.layers))}",
    }
    return words.get(figure.metric, f"{figure.metric}, %")
