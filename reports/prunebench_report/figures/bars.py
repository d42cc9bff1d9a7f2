"""Draws bars by layer or by step, and intervals by cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from prunebench_report.figures.axes import Frame
from prunebench_report.figures.scale import Scale, largest_drawn, linear, linear_around
from prunebench_report.figures.svg import (
    Figure,
    colour,
    label,
    line,
    mark,
    percent,
    pixels,
    placed,
    plot,
    stretched,
    titled,
)
from prunebench_report.text import number

BARS = 110.0
"""Height of a plot of bars in pixels."""
_TOOLTIPS = 64
"""With more bars, one path draws them all: a tooltip for each would make the file large."""
_MOST_TICKS = 8
_ROW = 19.0
_LONGEST_NAME = 21


def bars(
    caption: str,
    values: Mapping[int, float],
    x_label: str,
    marked: Collection[int] = (),
) -> Figure:
    """A bar for each layer or step; ``marked`` are drawn in another colour, e.g. removed layers."""
    positions, heights = list(values), list(values.values())
    first, last = min(positions), max(positions)
    high = max(0.0, largest_drawn(heights))
    y = linear(min(0.0, *heights), 1.05 * high or 1.0)
    # Rounded up, so that there are never more ticks than that
    step = max(1, -(-(last - first + 1) // _MOST_TICKS))
    x = Scale(first - 0.5, last + 0.5, tuple(range(first, last + 1, step)))
    frame = Frame(x, y, x_label, "", height=BARS)
    if len(values) > _TOOLTIPS:
        body = _one_path(frame, values)
    else:
        body = "".join(_bar(frame, at, value, marked) for at, value in values.items())
    far = [f"{at} ({number(value, 4)})" for at, value in values.items() if y.beyond(value)]
    notes = (f"Bars cut at the top: {', '.join(far)}.",) if far else ()
    desc = f"{len(values)} values from {number(min(heights), 4)} to {number(max(heights), 4)}."
    svg = plot(caption, desc, BARS, [frame.draw(), body])
    return Figure(caption, desc, svg, notes)


def _bar(frame: Frame, at: int, value: float, marked: Collection[int]) -> str:
    left, right = frame.x.share(at - 0.4), frame.x.share(at + 0.4)
    top, bottom = sorted((frame.at(at, value)[1], frame.at(at, 0.0)[1]))
    # The colours of the second and the third method: neither means good or bad.
    kind = colour(2 if at in marked else 1)
    at_and_size = placed(
        x=percent(left),
        y=pixels(top),
        width=percent(right - left),
        height=pixels(max(1.0, bottom - top)),
    )
    rect = f'<rect class="{kind}"{at_and_size}/>'
    removed = ", removed" if at in marked else ""
    return titled(f"{at}: {number(value, 4)}{removed}", rect)


def _one_path(frame: Frame, values: Mapping[int, float]) -> str:
    _, zero = frame.at(0, 0.0)
    # One unit across for each bar; the inner viewport stretches it.
    steps = "".join(
        f"M{at - frame.x.low - 0.5:g} {pixels(zero)}V{pixels(frame.at(at, value)[1])}h1V{pixels(zero)}"
        for at, value in values.items()
    )
    path = f'<path class="solid {colour(1)}" d="{steps}"/>'
    return stretched(frame.x.high - frame.x.low, BARS, path)


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; ``mark`` is that of its method."""

    name: str
    value: float
    low: float
    high: float
    mark: int
    cell: str


def intervals(
    caption: str, rows: Sequence[Interval], reference: float | None, x_label: str
) -> Figure:
    """A row for each cell on one scale, and a vertical line at ``reference``, dense's value."""
    height = _ROW * len(rows)
    x = linear_around([end for row in rows for end in (row.low, row.high)])
    frame = Frame(x, Scale(0, len(rows), ()), x_label, "", height=height)
    parts = [frame.draw()]
    if reference is not None:
        share = x.share(reference)
        parts.append(line("dense", (share, 0), (share, height)))
    for index, row in enumerate(rows):
        y = _ROW * (index + 0.5)
        body = line(f"range {colour(row.mark)}", (x.share(row.low), y), (x.share(row.high), y))
        body += mark(row.mark, (x.share(row.value), y))
        # The tooltip has the whole name.
        shown = row.name
        if len(shown) > _LONGEST_NAME:
            shown = f"{shown[: _LONGEST_NAME - 1]}…"
        body += label(shown, (0, y), shift=(-8, 4), anchor="end")
        ends = f"{number(row.low)} to {number(row.high)}"
        parts.append(titled(f"{row.name}: {number(row.value)} ({ends})", body, f"#row-{row.cell}"))
    desc = "; ".join(
        f"{r.name} {number(r.value)} ({number(r.low)} to {number(r.high)})" for r in rows
    )
    return Figure(caption, desc, plot(caption, desc, height, parts, kind="named"))
