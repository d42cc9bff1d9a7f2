"""Draws line charts: a line a method, with a bar at each point for what seeds or windows change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from prunebench_report.figures.axes import Frame, ends
from prunebench_report.figures.label_placement import line_block
from prunebench_report.figures.labels import names, rule_name
from prunebench_report.figures.svg import LegendEntry, colour, line, lines, mark, titled
from prunebench_report.text import number

_BETWEEN = 24
"""Steps of a line from point to point that the names of rules keep clear of."""
DASHES = 3
"""Lines of one method differ in their dashes; beyond three they repeat."""


@dataclass(frozen=True)
class Vertex:
    """A point of a line with the ends of its bar; ``cell`` is what it links to."""

    x: float
    y: float
    title: str
    low: float | None = None
    high: float | None = None
    cell: str | None = None


@dataclass(frozen=True)
class Series:
    """One line; without ``marks`` only the line is drawn, as for a curve of many points."""

    name: str
    mark: int
    vertices: tuple[Vertex, ...]
    dashes: int = 0
    marks: bool = True


@dataclass(frozen=True)
class Rule:
    """A horizontal line with a name, such as dense's value or the quality gate."""

    name: str
    value: float
    kind: str


def draw(frame: Frame, series: Sequence[Series], rules: Sequence[Rule] = ()) -> list[str]:
    """The elements of the chart."""
    shown = [rule for rule in rules if frame.y.low < rule.value < frame.y.high]
    parts = [frame.draw(), *(frame.rule(rule.value, rule.kind) for rule in shown)]
    # All lines before all marks, so that no line covers a mark.
    parts += [_line(frame, one) for one in series]
    parts += [_marks(frame, one) for one in series if one.marks]
    parts.append(_names(frame, series, shown))
    return parts


def legend(series: Sequence[Series]) -> tuple[LegendEntry, ...]:
    return tuple(LegendEntry(one.name, one.mark, one.dashes, not one.marks) for one in series)


def _line(frame: Frame, one: Series) -> str:
    at = [frame.at(vertex.x, vertex.y) for vertex in one.vertices]
    if len(at) < 2:
        return ""
    return f'<g class="line {colour(one.mark)} d{one.dashes}">{lines(None, at)}</g>'


def _marks(frame: Frame, one: Series) -> str:
    parts = []
    for vertex in one.vertices:
        body = ""
        if vertex.low is not None and vertex.high is not None:
            ends = (max(vertex.low, frame.y.low), min(vertex.high, frame.y.high))
            low, high = (frame.at(vertex.x, end) for end in ends)
            body = line(f"range {colour(one.mark)}", low, high)
        body += mark(one.mark, frame.at(vertex.x, vertex.y))
        parts.append(titled(vertex.title, body, f"#row-{vertex.cell}" if vertex.cell else None))
    return "".join(parts)


def _along(frame: Frame, one: Series) -> list[tuple[float, float]]:
    """Points on a line, near enough to each other that no label fits between."""
    found = [frame.at(v.x, v.y) for v in one.vertices]
    for (x0, y0), (x1, y1) in itertools.pairwise(frame.at(v.x, v.y) for v in one.vertices):
        found += [
            (x0 + (x1 - x0) * step / _BETWEEN, y0 + (y1 - y0) * step / _BETWEEN)
            for step in range(1, _BETWEEN)
        ]
    return found


def _names(frame: Frame, series: Sequence[Series], rules: Sequence[Rule]) -> str:
    """The names of rules, and the values of points that the axis does not reach."""
    # The names of rules avoid lines, bars, rules and each other.
    points = [point for one in series for point in _along(frame, one)]
    taken = [line_block(*ends(frame, rule.value)) for rule in rules]
    taken += [
        line_block(frame.at(v.x, v.low), frame.at(v.x, v.high))
        for one in series
        for v in one.vertices
        if v.low is not None and v.high is not None
    ]
    drawn = []
    for rule in rules:
        text, block = rule_name(frame, rule.value, rule.name, points, taken)
        drawn.append(text)
        taken.append(block)
    far = [
        (frame.at(v.x, v.y), f"{number(v.y, 2)} ↑")
        for one in series
        for v in one.vertices
        if one.marks and frame.y.beyond(v.y)
    ]
    texts = names([at for at, _ in far], [text for _, text in far], frame.height, taken=taken)
    return "".join(drawn) + texts
