"""Draws a scatter plot: error bars, dense as a cross-hair, and the frontier."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from prunebench_report.figures.axes import Frame, ends
from prunebench_report.figures.label_placement import Block, line_block, point_block
from prunebench_report.figures.labels import names, rule_name
from prunebench_report.figures.plot import Panel, Point
from prunebench_report.figures.scale import (
    Scale,
    largest_drawn,
    linear,
    linear_around,
    log_around,
)
from prunebench_report.figures.svg import (
    MARKS,
    UNITS,
    line,
    lines,
    mark,
    percent,
    pixels,
    placed,
    segments,
    stretched,
    titled,
)
from prunebench_report.text import number

At = tuple[float, float]

_WHOLE_BARS = 50.0
"""Error bars of a recovery that are drawn whole in any case, in per cent of dense."""


def draw(
    panel: Panel,
    points: Sequence[Point],
    methods: Sequence[str],
    gate: float,
    best: set[str],
    named: set[str] | None = None,
) -> tuple[Frame, list[str]]:
    """The frame, and the elements to draw in it.

    ``methods`` decides marks and colours, ``best`` are the cells on the frontier, ``named`` those
    with a label besides dense and what is beyond an axis (all if None).
    """
    frame = frame_of(panel, points)
    hard: list[Block] = []
    crosses: list[str] = []
    bars: dict[str, list[tuple[At, At]]] = {}
    for point in points:
        found = _bars(frame, point)
        hard += [line_block(a, b) for a, b in found]
        if point.method == "dense":
            crosses += [line("dense", a, b) for a, b in found]
        else:
            kind = "grey" if point.contended else f"c{methods.index(point.method) % MARKS}"
            bars.setdefault(f"range {kind}", []).extend(found)
    ranges = "".join(segments(kind, ends) for kind, ends in bars.items() if ends)
    steps = _frontier(frame, panel, [p for p in points if p.cell in best])
    # The frontier is under everything that belongs to a cell.
    parts = [frame.draw(), lines("frontier", steps), *crosses]
    if ranges:
        parts.append(stretched(UNITS, frame.height, ranges))
    if panel.gated and frame.y.low < 100 * gate < frame.y.high:
        # The name of the gate chooses its place before those of cells do.
        at = [frame.at(p.x, p.y) for p in points]
        text, block = rule_name(frame, 100 * gate, f"gate {100 * gate:g} %", at, hard)
        parts += [frame.rule(100 * gate, "gate"), text]
        hard += [block, line_block(*ends(frame, 100 * gate))]
    # Marks after all bars, so that no bar covers a mark; dense last.
    for point in sorted(points, key=lambda p: p.method == "dense"):
        parts.append(_mark(frame, panel, point, methods, hollow=point.cell not in best))
    labelled = [
        p
        for p in points
        if named is None or p.cell in named or p.method == "dense" or beyond(frame, p)
    ]
    # What is beyond an axis has to be named; then the best choose; dense is known by its lines.
    labelled.sort(key=lambda p: (not beyond(frame, p), p.method == "dense", -panel.y_better * p.y))
    at = [frame.at(p.x, p.y) for p in labelled]
    soft = [line_block(a, b) for a, b in itertools.pairwise(steps)]
    texts = [_short(frame, p) for p in labelled]
    # Points without a name take room as well.
    hard += [point_block(frame.at(p.x, p.y)) for p in points]
    parts.append(names(at, texts, frame.height, taken=hard, avoided=soft))
    return frame, parts


def frame_of(panel: Panel, points: Sequence[Point]) -> Frame:
    """The axes, without what is far beyond all other values."""
    xs = [value for p in points for value in (p.x, *(p.x_range or ()))]
    x = linear_around(xs, least=panel.x_least)
    if panel.log_y:
        y = log_around([v for p in points for v in (p.y, *(p.y_range or ())) if v > 0])
    else:
        y = recovery_scale([p.y for p in points], [p.y_range for p in points if p.y_range])
    return Frame(x, y, panel.x_label, panel.y_label, panel.x_better, panel.y_better)


def recovery_scale(values: Sequence[float], ranges: Sequence[tuple[float, float]]) -> Scale:
    """Up to 100 % at least; down to 0 % only if a value is below half of dense quality.

    ``ranges`` are the ends of error bars, which are drawn whole unless they are far longer than
    the values are apart.
    """
    top = max(100.0, largest_drawn([*values, 100.0]))
    least = min(100.0, *values)
    room = max(top - least, _WHOLE_BARS)
    highs = [high for low, high in ranges if low <= top]
    # A bar of a thousand per cent would leave no room for the values themselves.
    top = min(max([top, *highs]), top + room)
    least = max(min([least, *(low for low, _ in ranges)]), least - room)
    # Just below the lowest value, with more room the further it is from 100 %.
    low = min(0.0, least) if least < 50 else least - 0.15 * max(0.0, 100 - least) - 1
    return linear(low - 3, top + 0.08 * (top - low))


def beyond(frame: Frame, point: Point) -> bool:
    """Whether a point is drawn at the end of an axis because it is too far away."""
    return frame.x.beyond(point.x) or frame.y.beyond(point.y)


def _short(frame: Frame, point: Point) -> str:
    """A point's name; with the value that the axis does not reach."""
    if frame.y.beyond(point.y):
        return f"{point.short}: {number(point.y, 2)} ↑"
    return f"{point.short}: {number(point.x, 2)} →" if frame.x.beyond(point.x) else point.short


def _bars(frame: Frame, point: Point) -> list[tuple[At, At]]:
    """The ends of dense's cross-hair, or of error bars."""
    across, y = frame.at(point.x, point.y)
    if point.method == "dense":
        return [((0, y), (1, y)), ((across, 0), (across, frame.height))]
    found: list[tuple[At, At]] = []
    if point.x_range:
        left, right = (frame.at(end, point.y) for end in point.x_range)
        found.append((left, right))
    if point.y_range and not frame.y.beyond(point.y):
        low, high = (frame.at(point.x, max(end, frame.y.low)) for end in point.y_range)
        found.append((low, high))
    return found


def _mark(frame: Frame, panel: Panel, point: Point, methods: Sequence[str], *, hollow: bool) -> str:
    at = frame.at(point.x, point.y)
    title = f"{point.name}: {panel.x_label} {number(point.x)}, {panel.y_label} {number(point.y)}"
    href = f"#row-{point.cell}"
    if point.method == "dense":
        dot = f'<use href="#k0" class="centre"{placed(x=percent(at[0]), y=pixels(at[1]))}/>'
        return titled(title, dot, href)
    kind = " ".join(
        name for name, holds in (("hollow", hollow), ("grey", point.contended)) if holds
    )
    return titled(title, mark(methods.index(point.method), at, kind), href)


def _frontier(frame: Frame, panel: Panel, best: Sequence[Point]) -> list[At]:
    """The corners of the steps between the points that nothing dominates."""
    ordered = sorted(best, key=lambda p: (p.x_settled, p.y))
    corners: list[At] = []
    for before, after in itertools.pairwise(ordered):
        # Between two points the frontier is as good as the one on the better side of x.
        bend = (before.x, after.y) if panel.x_better > 0 else (after.x, before.y)
        corners += [frame.at(*bend), frame.at(after.x, after.y)]
    return [frame.at(ordered[0].x, ordered[0].y), *corners] if corners else []
