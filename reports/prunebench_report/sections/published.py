"""Published against measured: the figures that a suite expects beside the mean of their cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from prunebench.record.expectations import REMOVED_LAYERS
from prunebench_report.data.published import (
    agrees,
    measured,
    metric_in_words,
    relative_difference,
)
from prunebench_report.text import MISSING, TIMES, clean, number, percent, signs

if TYPE_CHECKING:
    from prunebench.record.expectations import Expectation
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

# A relative difference that cannot be seen in the digits shown.
_SAME = 5e-5
NOT_MEASURED = "not measured"
"""The cells of a figure have results, but not this one."""
# From here on a factor is easier to grasp than a percentage.
_TIMES = 9.0


def section(given: ReportInput) -> list[dict[str, Any]]:
    """One row for each figure, dense first within its model."""
    expect = given.plan.expect
    models = list(dict.fromkeys(figure.model for figure in expect))
    ordered = sorted(
        expect, key=lambda figure: (models.index(figure.model), figure.method != "dense")
    )
    dense = {_same_quantity(figure): figure for figure in ordered if figure.method == "dense"}
    # Cells with several seeds share a row of the main table, whose id is not a cell's.
    row_ids = {
        cell: row["cell"] for row in given.rows for cell in row.get("members", (row["cell"],))
    }
    rows = []
    for figure in ordered:
        values = _values(given, figure)
        row = _row(given, figure, values)
        base = dense.get(_same_quantity(figure))
        if base is not None and base is not figure:
            row["note"] = _against_dense(figure, values, base, _values(given, base))
        row["cell"] = next((row_ids[cell] for cell in figure.cells if cell in row_ids), None)
        rows.append(row)
    return rows


def _done(given: ReportInput, figure: Expectation) -> list[Record]:
    """The cells of a figure that have a result."""
    known = [given.record_by_id[cell] for cell in figure.cells if cell in given.record_by_id]
    return [record for record in known if record.status == "ok"]


def _values(given: ReportInput, figure: Expectation) -> list[float]:
    values = [measured(record, figure) for record in _done(given, figure)]
    return [value for value in values if value is not None]


def _row(given: ReportInput, figure: Expectation, values: Sequence[float]) -> dict[str, Any]:
    mean = fmean(values) if values else None
    difference = relative_difference(figure, mean)
    return {
        "model": clean(figure.model),
        "method": clean(figure.method),
        "metric": metric_in_words(figure),
        "published": _with_unit(figure, figure.value),
        "measured": _with_unit(figure, mean) + _deviation(given, figure, values),
        "difference": _in_words(difference),
        "agrees": agrees(figure, difference),
        "state": _state(given, figure, difference),
        "source": clean(figure.source),
        "note": None,
    }


def _state(given: ReportInput, figure: Expectation, difference: float | None) -> str:
    limit = f"{100 * figure.tolerance:g} %"
    if difference is not None:
        if agrees(figure, difference):
            return f"agrees within {limit}"
        return f"differs by more than {limit}"
    records = [given.record_by_id.get(cell) for cell in figure.cells]
    # Without a value, say why: cells failed, were not run, or measured something else.
    states = {record.status if record else "not run" for record in records}
    return NOT_MEASURED if "ok" in states else " and ".join(sorted(states))


def _in_words(difference: float | None) -> str:
    if difference is None:
        return MISSING
    if abs(difference) < _SAME:
        return "= published"
    if difference >= _TIMES:
        return f"{number(difference + 1)} times as high"
    share = 100 * difference
    text = f"{share:+.{0 if abs(share) >= 100 else 1 if abs(share) >= 1 else 2}f} %"
    return f"{signs(text)}, {'higher' if difference > 0 else 'lower'}"


def _with_unit(figure: Expectation, value: float | None) -> str:
    if value is None:
        return MISSING
    if figure.metric == "parameters":
        return f"{value:,.0f}"
    if figure.metric == REMOVED_LAYERS:
        return f"{value:g} of {len(figure.layers)}"
    if figure.metric == "removed_share":
        return percent(value, 2)
    return number(value, 4) + (TIMES if figure.metric == "speedup" else "")


def _deviation(given: ReportInput, figure: Expectation, values: Sequence[float]) -> str:
    """The standard deviation and what varies: the seed, or settings that the figure leaves open."""
    if len(values) < 2:
        return ""
    cells = [one.cell for one in _done(given, figure) if measured(one, figure) is not None]
    settings = {json.dumps({**cell.identity(), "seed": None}, sort_keys=True) for cell in cells}
    seeds = len({cell.seed for cell in cells})
    counts = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if len(settings) > 1:
        counts = f"{len(cells)} cells: {len(settings)} settings, {counts}"
    deviation = stdev(values)
    text = percent(deviation, 2) if figure.metric == "removed_share" else number(deviation, 2)
    return f" ± {text} ({counts})"


def _against_dense(
    figure: Expectation, values: Sequence[float], base: Expectation, base_values: Sequence[float]
) -> str | None:
    """If dense itself is off, the ratios to dense, which can still be compared; otherwise None."""
    off = relative_difference(base, fmean(base_values)) if base_values else None
    if not values or off is None or agrees(base, off) or not base.value:
        return None
    mine = fmean(values) / fmean(base_values)
    return (
        f"dense itself is off by {_in_words(off)}; against dense: "
        f"{figure.value / base.value:.2f}{TIMES} published, {mine:.2f}{TIMES} measured"
    )


def _same_quantity(figure: Expectation) -> tuple[Any, ...]:
    """What a figure and the figure of its dense model have in common."""
    return (
        figure.model,
        figure.metric,
        figure.corpus,
        figure.protocol,
        figure.length,
        figure.tasks,
        figure.layers,
    )
