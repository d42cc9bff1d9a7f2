"""Published against measured: the figures that a suite expects, each beside the mean of its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from prunebench.record.expectations import MODEL_METRICS, PERPLEXITY, TASKS_MEAN
from prunebench_report.text import MISSING, TIMES, clean, number, percent, signs

if TYPE_CHECKING:
    from prunebench.record.expectations import Expectation
    from prunebench.record.record import Record

_SAME = 5e-5
"""A relative difference that is none at the digits shown."""


def section(
    expect: Sequence[Expectation], records: Sequence[Record], shown: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row a figure, dense first within its model; ``shown`` gives the id of the table's row that holds a cell."""
    by_id = {record.id: record for record in records}
    models = list(dict.fromkeys(figure.model for figure in expect))
    ordered = sorted(
        expect, key=lambda figure: (models.index(figure.model), figure.method != "dense")
    )
    dense = {_what(figure): figure for figure in ordered if figure.method == "dense"}
    rows = []
    for figure in ordered:
        values = _values(figure, by_id)
        row = _row(figure, values, by_id)
        base = dense.get(_what(figure))
        if base is not None and base is not figure:
            row["note"] = _relative(figure, values, base, _values(base, by_id))
        cells = [shown[cell] for cell in figure.cells if cell in shown]
        rows.append({**row, "cell": cells[0] if cells else None})
    return rows


def columns(expect: Sequence[Expectation], record: Record) -> list[dict[str, Any]]:
    """What the export says of one cell: a set of values for each figure that it should reproduce."""
    found = []
    for figure in expect:
        if record.id not in figure.cells:
            continue
        value = measured(record, figure) if record.status == "ok" else None
        difference = _difference(figure, value)
        found.append(
            {
                "published_metric": metric(figure),
                "published_value": figure.value,
                "published_measured": value,
                "published_difference": difference,
                "published_agrees": None
                if difference is None
                else abs(difference) <= figure.tolerance,
                "published_source": figure.source,
            }
        )
    return found


def measured(record: Record, figure: Expectation) -> float | None:
    """The number of one cell that a published figure is of, in the figure's unit; None where it was not measured."""
    if figure.metric == PERPLEXITY:
        for one in record.quality.perplexity if record.quality else []:
            if (one.corpus, one.protocol) == (figure.corpus, figure.protocol) and figure.length in {
                None,
                one.window,
            }:
                return one.perplexity
        return None
    if figure.metric in MODEL_METRICS:
        if figure.metric == "speedup":
            timed = record.speed.latency[0] if record.speed and record.speed.latency else None
            ratio = timed.inter_token_speedup if timed else None
            return ratio.estimate if ratio else None
        value = getattr(record.audit, figure.metric, None)
        return None if value is None else float(value)
    scores = _scores(record)
    if figure.metric != TASKS_MEAN:
        return scores.get(figure.metric)
    wanted = figure.tasks or tuple(scores)
    return (
        fmean(scores[name] for name in wanted) if wanted and scores.keys() >= set(wanted) else None
    )


def metric(figure: Expectation) -> str:
    """What is compared, in words."""
    if figure.metric == PERPLEXITY:
        window = f", windows of {figure.length}" if figure.length else ""
        return f"perplexity, {figure.corpus}{window}, {figure.protocol} protocol"
    if figure.metric == TASKS_MEAN:
        return f"mean of {', '.join(figure.tasks) or 'the tasks'}, %"
    words = {
        "parameters": "parameters",
        "removed_share": "share of parameters removed",
        "speedup": "speed-up per token",
    }
    return words.get(figure.metric, f"{figure.metric}, %")


def _scores(record: Record) -> dict[str, float]:
    """The headline metric of each task, in per cent."""
    found = record.quality.tasks if record.quality else []
    values = {one.task: one.headline_metric.value for one in found if one.asked}
    return {task: 100 * value for task, value in values.items() if value is not None}


def _values(figure: Expectation, by_id: Mapping[str, Record]) -> list[float]:
    return [
        value for record in _done(figure, by_id) if (value := measured(record, figure)) is not None
    ]


def _done(figure: Expectation, by_id: Mapping[str, Record]) -> list[Record]:
    return [by_id[cell] for cell in figure.cells if cell in by_id and by_id[cell].status == "ok"]


def _row(
    figure: Expectation, values: Sequence[float], by_id: Mapping[str, Record]
) -> dict[str, Any]:
    mean = fmean(values) if values else None
    difference = _difference(figure, mean)
    return {
        "model": clean(figure.model),
        "method": clean(figure.method),
        "metric": metric(figure),
        "published": _said(figure, figure.value),
        "measured": _said(figure, mean) + _spread(figure, values, by_id),
        "difference": _words(difference),
        "agrees": None if difference is None else abs(difference) <= figure.tolerance,
        "state": _state(figure, difference, by_id),
        "source": clean(figure.source),
        "note": None,
    }


def _state(figure: Expectation, difference: float | None, by_id: Mapping[str, Record]) -> str:
    limit = f"{100 * figure.tolerance:g} %"
    if difference is not None:
        return (
            f"agrees within {limit}"
            if abs(difference) <= figure.tolerance
            else f"differs by more than {limit}"
        )
    states = {by_id[cell].status if cell in by_id else "not run" for cell in figure.cells}
    return "not measured" if "ok" in states else " and ".join(sorted(states))


def _difference(figure: Expectation, value: float | None) -> float | None:
    if value is None:
        return None
    if figure.value == 0:
        return 0.0 if value == 0 else None
    return value / figure.value - 1


def _words(difference: float | None) -> str:
    if difference is None:
        return MISSING
    if abs(difference) < _SAME:
        return "= published"
    share = 100 * difference
    text = f"{share:+.{0 if abs(share) >= 100 else 1 if abs(share) >= 1 else 2}f} %"
    return f"{signs(text)}, {'higher' if difference > 0 else 'lower'}"


def _said(figure: Expectation, value: float | None) -> str:
    if value is None:
        return MISSING
    if figure.metric == "parameters":
        return f"{value:,.0f}"
    if figure.metric == "removed_share":
        return percent(value, 2)
    return number(value, 4) + (TIMES if figure.metric == "speedup" else "")


def _spread(figure: Expectation, values: Sequence[float], by_id: Mapping[str, Record]) -> str:
    """The deviation and what it is over: seeds, or cells of settings that the figure does not tell apart."""
    if len(values) < 2:
        return ""
    cells = [one.cell for one in _done(figure, by_id) if measured(one, figure) is not None]
    settings = {json.dumps({**cell.identity(), "seed": None}, sort_keys=True) for cell in cells}
    seeds = len({cell.seed for cell in cells})
    told = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if len(settings) > 1:
        told = f"{len(cells)} cells: {len(settings)} settings, {told}"
    deviation = stdev(values)
    text = percent(deviation, 2) if figure.metric == "removed_share" else number(deviation, 2)
    return f" ± {text} ({told})"


def _relative(
    figure: Expectation, values: Sequence[float], base: Expectation, base_values: Sequence[float]
) -> str | None:
    """Where dense itself is off: the step from dense, published and measured, which compares all the same."""
    off = _difference(base, fmean(base_values)) if base_values else None
    if not values or off is None or abs(off) <= base.tolerance or not base.value:
        return None
    mine = fmean(values) / fmean(base_values)
    return (
        f"dense itself is off by {_words(off)}; against dense: {figure.value / base.value:.2f}{TIMES} published, "
        f"{mine:.2f}{TIMES} measured"
    )


def _what(figure: Expectation) -> tuple[Any, ...]:
    return figure.model, figure.metric, figure.corpus, figure.protocol, figure.length, figure.tasks
