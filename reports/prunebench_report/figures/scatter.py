"""Draws a scatter plot with matplotlib: error bars, dense as cross-hair, the frontier, and labels out of each other's way."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.figures import label_placement as labels
from prunebench_report.figures.plot import (
    FONT,
    GRID,
    HEIGHT,
    INK,
    MARKERS,
    METHODS,
    PAPER,
    SOFT,
    WIDTH,
    Panel,
    Point,
    Text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    panel: Panel,
    points: Sequence[Point],
    methods: Sequence[str],
    gate: float,
    best: set[str],
    named: set[str] | None = None,
) -> tuple[str, list[Text]]:
    """The SVG by matplotlib, and the labels that belong into it: of all points, or of dense and those in ``named``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "prunebench",
        "font.family": "DejaVu Sans",
        "font.size": FONT,
    }
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((0.125, 0.125, 0.855, 0.85))
        _axes(axes, panel, points)
        if _shows_gate(axes, panel, gate):
            axes.axhline(100 * gate, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        for point in points:
            _mark(axes, point, methods, hollow=point.cell not in best)
        steps = _frontier(axes, panel, [p for p in points if p.cell in best])
        hints = _hints(axes, panel, gate)
        labelled = [p for p in points if named is None or p.cell in named or p.method == "dense"]
        texts = [*_names(axes, panel, labelled, steps, hints), *hints]
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return buffer.getvalue(), texts


def _axes(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    xs = [value for p in points for value in (p.x, *(p.x_range or ()))]
    low, high = min(xs), max(xs)
    room = 0.16 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ys = [value for p in points for value in (p.y, *((p.y_range or ()) if panel.log_y else ()))]
    if panel.log_y:
        low, high = min(ys), max(ys)
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.1 / 1.08, high * (high / low) ** 0.1 * 1.08)
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=9)
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        low = min(0.0, *ys) if min(ys) < 50 else min(ys) - 0.15 * (100 - min(ys)) - 1
        axes.set_ylim(low - 3, max(100.0, *ys) + 0.08 * (max(100.0, *ys) - low))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(panel.x_label, color=SOFT)
    axes.set_ylabel(panel.y_label, color=SOFT)
    axes.set_facecolor("none")
    axes.figure.patch.set_alpha(0)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=SOFT, pad=5)
    for side in axes.spines.values():
        side.set_visible(False)


def _mark(axes: Axes, point: Point, methods: Sequence[str], *, hollow: bool) -> None:
    if point.method == "dense":
        axes.axvline(point.x, color=INK, linewidth=0.9, zorder=1.5)
        axes.axhline(point.y, color=INK, linewidth=0.9, zorder=1.5)
        axes.plot(
            [point.x],
            [point.y],
            linestyle="none",
            marker="o",
            markersize=5,
            color=INK,
            zorder=4,
            gid=f"at-{point.cell}",
        )
        return
    index = methods.index(point.method) % len(MARKERS)
    colour = METHODS[index]
    if point.x_range:
        axes.plot(
            point.x_range,
            [point.y, point.y],
            color=colour,
            linewidth=1.2,
            zorder=2,
            solid_capstyle="butt",
        )
    if point.y_range:
        axes.plot(
            [point.x, point.x],
            point.y_range,
            color=colour,
            linewidth=1.2,
            zorder=2,
            solid_capstyle="butt",
        )
    axes.plot(
        [point.x],
        [point.y],
        linestyle="none",
        marker=MARKERS[index],
        markersize=9,
        markeredgewidth=1.6,
        markerfacecolor=PAPER if hollow else colour,
        markeredgecolor=colour,
        zorder=3,
        gid=f"at-{point.cell}",
        url=f"#row-{point.cell}",
    )


def _frontier(axes: Axes, panel: Panel, best: Sequence[Point]) -> list[tuple[float, float]]:
    """Draw the steps between the points that nothing dominates; gives their corners."""
    ordered = sorted(best, key=lambda p: (p.x_settled, p.y))
    corners: list[tuple[float, float]] = []
    for before, after in itertools.pairwise(ordered):
        # What lies between two points is dominated by the one on the better side of x.
        bend = (before.x, after.y) if panel.x_better > 0 else (after.x, before.y)
        corners += [(before.x, before.y), bend, (after.x, after.y)]
    if corners:
        axes.plot(
            *zip(*corners, strict=True), color=SOFT, linewidth=1.1, linestyle="--", zorder=1.8
        )
    return corners


def _names(
    axes: Axes,
    panel: Panel,
    points: Sequence[Point],
    steps: Sequence[tuple[float, float]],
    hints: Sequence[Text],
) -> list[Text]:
    """Names beside the points, so that none covers another; far ones get a line to their point."""
    box = axes.get_window_extent()
    area = (box.x0 + 2, box.y0 + 2, box.x1 - 2, box.y1 - 2)
    ordered = sorted(points, key=lambda p: (p.method == "dense", -panel.y_better * p.y))
    pixels = [_pixel(axes, p.x, p.y) for p in ordered]
    lines = [(*_pixel(axes, *a), *_pixel(axes, *b)) for a, b in itertools.pairwise(steps)]
    for point, (x, y) in zip(ordered, pixels, strict=True):
        if point.method == "dense":
            lines += [(box.x0, y, box.x1, y), (x, box.y0, x, box.y1)]
        if point.x_range:
            lines.append(
                (
                    _pixel(axes, point.x_range[0], point.y)[0],
                    y,
                    _pixel(axes, point.x_range[1], point.y)[0],
                    y,
                )
            )
        if point.y_range and panel.log_y:
            lines.append(
                (
                    x,
                    _pixel(axes, point.x, point.y_range[0])[1],
                    x,
                    _pixel(axes, point.x, point.y_range[1])[1],
                )
            )
    widths = [_width(p.short) for p in ordered]
    boxes = [_box(hint) for hint in hints]
    places = labels.place(pixels, widths, FONT * 1.25, area, lines=lines, boxes=boxes)
    texts = []
    for point, at, place in zip(ordered, pixels, places, strict=True):
        if place is None:
            continue
        texts.append(
            Text(
                place.x + place.width / 2,
                place.y + 0.3 * place.height,
                point.short,
                "middle",
                "name",
            )
        )
        if place.far:
            near = (
                min(max(at[0], place.x), place.x + place.width),
                min(max(at[1], place.y), place.y + place.height),
            )
            end = axes.transData.inverted().transform(near)
            axes.plot([point.x, end[0]], [point.y, end[1]], color=SOFT, linewidth=0.6, zorder=2.5)
    return texts


def _shows_gate(axes: Axes, panel: Panel, gate: float) -> bool:
    low, high = axes.get_ylim()
    return panel.gated and low < 100 * gate < high


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _box(text: Text) -> labels.Place:
    width = _width(text.text)
    return labels.Place(
        text.x - (width if text.anchor == "end" else 0), text.y - 3, width, FONT * 1.2, far=False
    )


def _hints(axes: Axes, panel: Panel, gate: float) -> list[Text]:
    """Which way is better, and the gate."""
    box = axes.get_window_extent()
    x, anchor = (box.x1 - 4, "end") if panel.x_better > 0 else (box.x0 + 4, "start")
    y, arrow = (box.y1 - 12, "↗") if panel.y_better > 0 else (box.y0 + 6, "↙")
    texts = [Text(x, y, f"better {arrow}" if arrow == "↗" else f"{arrow} better", anchor, "hint")]  # type: ignore[arg-type]
    if _shows_gate(axes, panel, gate):
        texts.append(
            Text(
                box.x1 - 4,
                _pixel(axes, 0, 100 * gate)[1] - 11,
                f"gate {100 * gate:g} %",
                "end",
                "hint",
            )
        )
    return texts


def _width(text: str) -> float:
    return 0.6 * FONT * len(text) + 2
