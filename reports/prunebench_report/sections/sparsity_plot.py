"""Quality against what was pruned: a line a method, with the spread of its seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row
from prunebench_report.data.names import name_in_model
from prunebench_report.data.seeds import seed_deviation
from prunebench_report.figures.axes import Frame
from prunebench_report.figures.lines import DASHES, Rule, Series, Vertex, draw, legend
from prunebench_report.figures.scale import linear, log_around
from prunebench_report.figures.scatter import recovery_scale
from prunebench_report.figures.svg import Figure, plot
from prunebench_report.text import number, percent

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench_report.figures.plot import Panel

MOST_LINES = 12
MOST_POINTS = 24
"""Of one line."""

_X_LABEL = "Prunable weights that are zero or removed, %"
# Options that say how much is pruned: cells that differ in nothing else are on one line.
_AMOUNT = re.compile(
    r"\s*\b(?:sparsity|ratio|count|target_parameters|share|layers|blocks|channels)=[\d.]+%?(?=\s|,|$)"
)
# Shares that differ by less print alike.
_SAME = 0.5


def sparsity_figure(
    panel: Panel,
    rows: Sequence[Row],
    records: Mapping[str, Record],
    methods: Sequence[str],
    gate: float,
) -> Figure | None:
    """``panel`` has the caption and the column of quality; None if all cells prune alike."""
    series = _series(panel, rows, records, methods)
    xs = [vertex.x for one in series for vertex in one.vertices]
    if not xs or max(xs) - min(xs) < _SAME:
        return None
    every, series = (
        series,
        [replace(one, vertices=_even(one.vertices)) for one in series[:MOST_LINES]],
    )
    vertices = [vertex for one in series for vertex in one.vertices]
    ys = [vertex.y for vertex in vertices]
    spreads = [(v.low, v.high) for v in vertices if v.low is not None and v.high is not None]
    y = (
        log_around([*ys, *(end for ends in spreads for end in ends if end > 0)])
        if panel.log_y
        else recovery_scale(ys, spreads)
    )
    # Some room on both sides, but never outside 0 to 100 % by much.
    x = linear(max(0.0, min(xs) - 4), min(100.0, max(xs)) + 4)
    frame = Frame(x, y, _X_LABEL, panel.y_label, 0, panel.y_better)
    rules = [] if panel.log_y else [Rule("dense", 100.0, "dense")]
    if panel.gated:
        rules.append(Rule(f"gate {100 * gate:g} %", 100 * gate, "gate"))
    desc = " ".join(map(_describe, series))
    body = draw(frame, series, rules)
    svg = plot(panel.caption, desc, frame.height, body)
    notes = _notes(frame, series, every)
    return Figure(panel.caption, desc, svg, notes, legend(series))


def line_name(row: Row) -> str:
    """A cell's name without how much it prunes: 'wanda sparsity=0.5 + lora' is 'wanda + lora'."""
    return _AMOUNT.sub("", name_in_model(row))


def _series(
    panel: Panel, rows: Sequence[Row], records: Mapping[str, Record], methods: Sequence[str]
) -> list[Series]:
    """The lines, those with most points first."""
    found: dict[str, list[Vertex]] = {}
    method_of: dict[str, str] = {}
    for row in rows:
        share, value = pruned_share(row, records), row.get(panel.y)
        if row["method"] == "dense" or share is None or value is None:
            continue
        if not (0 if panel.log_y else -1) < value < 1e30:
            continue
        name = line_name(row)
        found.setdefault(name, []).append(_vertex(row, panel, 100 * share, value))
        method_of[name] = row["method"]
    seen: dict[str, int] = {}
    series = []
    for name, vertices in sorted(found.items(), key=lambda one: -len(one[1])):
        method = method_of[name]
        dashes = seen.get(method, 0)
        seen[method] = dashes + 1
        # By what is pruned, whatever the order of the suite
        ordered = tuple(sorted(vertices, key=lambda one: (one.x, -one.y)))
        series.append(Series(name, methods.index(method), ordered, dashes % DASHES))
    return series


def pruned_share(row: Row, records: Mapping[str, Record]) -> float | None:
    """The share of the dense model's prunable weights that are zero or removed; mean over seeds."""
    shares = []
    for cell in row.get("members", (row["cell"],)):
        audit = records[cell].audit if cell in records else None
        if audit is not None and audit.prunable_dense:
            # What is left of the weights, and of those what is not zero
            left = audit.prunable - audit.zeros
            shares.append(1 - left / audit.prunable_dense)
    return fmean(shares) if shares else None


def _vertex(row: Row, panel: Panel, x: float, y: float) -> Vertex:
    deviation = seed_deviation(row, panel.y)
    low, high = (None, None) if deviation is None else (y - deviation, y + deviation)
    spread = "" if deviation is None else f" ± {number(deviation, 2)} over seeds"
    title = f"{row['name']}: {percent(x / 100)} pruned, {panel.y_label} {number(y)}{spread}"
    return Vertex(x, y, title, low, high, row["cell"])


def _even(vertices: tuple[Vertex, ...]) -> tuple[Vertex, ...]:
    """At most `MOST_POINTS` of them, the first and the last included."""
    last = len(vertices) - 1
    if last < MOST_POINTS:
        return vertices
    steps = (round(step * last / (MOST_POINTS - 1)) for step in range(MOST_POINTS))
    return tuple(vertices[step] for step in steps)


def _notes(frame: Frame, series: Sequence[Series], every: Sequence[Series]) -> tuple[str, ...]:
    """What of all lines the plot does not show."""
    notes = []
    if len(every) > len(series):
        notes.append(f"{len(series)} of {len(every)} lines are drawn.")
    # Of those lines too, a long one has only some of its cells.
    cells, drawn = (sum(len(one.vertices) for one in lines) for lines in (every, series))
    if cells > drawn:
        notes.append(f"{drawn} of {cells} cells are drawn.")
    far = [
        f"{one.name} ({number(v.y)})" for one in series for v in one.vertices if frame.y.beyond(v.y)
    ]
    if far:
        notes.append(f"Above the axis, drawn at its edge: {', '.join(far)}.")
    return tuple(notes)


def _describe(one: Series) -> str:
    points = ", ".join(f"{number(v.y)} at {number(v.x)} %" for v in one.vertices)
    return f"{one.name}: {points}."
