"""Draws a scatter plot with matplotlib: error bars, dense as a cross-hair, and the frontier."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from prunebench_report.figures.scatter_labels import add_names, hints, shows_gate

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
    """The SVG by matplotlib, and the labels to add to it.

    ``methods`` decides marks and colours, ``best`` are the cells on the frontier, ``named`` those
    with a label besides dense (all if None).
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "prunebench",  # the same ids each time
        "font.family": "DejaVu Sans",
        "font.size": FONT,
    }
    with rc_context():
        # A matplotlibrc, of the user or in the working folder, must not change the report.
        rcdefaults()
        rcParams.update(settings)
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)  # one pixel is one point
        axes = figure.add_axes((0.125, 0.125, 0.855, 0.85))
        _set_up_axes(axes, panel, points)
        if shows_gate(axes, panel, gate):
            axes.axhline(100 * gate, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        for point in points:
            _mark(axes, point, methods, hollow=point.cell not in best)
        steps = _frontier(axes, panel, [p for p in points if p.cell in best])
        # The limits are final from here on, so pixels can be computed.
        notes = hints(axes, panel, gate)
        labelled = [p for p in points if named is None or p.cell in named or p.method == "dense"]
        texts = [*add_names(axes, panel, labelled, steps, notes), *notes]
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(
            # Without metadata the same points give the same bytes.
            buffer,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return buffer.getvalue(), texts


def _set_up_axes(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    _scale_x(axes, points)
    if panel.log_y:
        _scale_log_y(axes, points)
    else:
        _scale_recovery(axes, points)
    axes.set_xlabel(panel.x_label, color=SOFT)
    axes.set_ylabel(panel.y_label, color=SOFT)
    axes.set_facecolor("none")
    axes.figure.patch.set_alpha(0)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=SOFT, pad=5)
    for side in axes.spines.values():
        side.set_visible(False)


def _scale_x(axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    xs = [value for p in points for value in (p.x, *(p.x_range or ()))]
    low, high = min(xs), max(xs)
    room = 0.16 * (high - low) or 0.1 * abs(high) or 1.0  # for labels; some if all x are equal
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _scale_log_y(axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ys = [value for p in points for value in (p.y, *(p.y_range or ()))]
    low, high = min(ys), max(ys)
    axes.set_yscale("log")
    # A tenth of the range on either side; 1.08 is for a range of nothing.
    axes.set_ylim(low / (high / low) ** 0.1 / 1.08, high * (high / low) ** 0.1 * 1.08)
    steps = (1, 2, 5) if high / low < 300 else (1,)  # fewer ticks over many decades
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_recovery(axes: Axes, points: Sequence[Point]) -> None:
    """Up to 100 % at least; down to 0 % only if a cell keeps less than half of dense quality."""
    from matplotlib.ticker import MaxNLocator

    ys = [p.y for p in points]
    # Just below the lowest value, with more room the further it is from 100 %.
    low = min(0.0, *ys) if min(ys) < 50 else min(ys) - 0.15 * (100 - min(ys)) - 1
    top = max(100.0, *ys)
    axes.set_ylim(low - 3, top + 0.08 * (top - low))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _mark(axes: Axes, point: Point, methods: Sequence[str], *, hollow: bool) -> None:
    """A mark with error bars, or dense's cross-hair; its group id is for the tooltip."""
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
    # Drawn in this order: frontier (1.8), error bars (2), marks (3), dense (4).
    index = methods.index(point.method) % len(MARKERS)
    colour = SOFT if point.contended else METHODS[index]
    bar: Any = {"color": colour, "linewidth": 1.2, "zorder": 2, "solid_capstyle": "butt"}
    if point.x_range:
        axes.plot(point.x_range, [point.y, point.y], **bar)
    if point.y_range:
        axes.plot([point.x, point.x], point.y_range, **bar)
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
    """Draw the steps between the points that nothing dominates, and return their corners."""
    ordered = sorted(best, key=lambda p: (p.x_settled, p.y))
    corners: list[tuple[float, float]] = []
    for before, after in itertools.pairwise(ordered):
        # Between two points the frontier is as good as the one on the better side of x.
        bend = (before.x, after.y) if panel.x_better > 0 else (after.x, before.y)
        corners += [(before.x, before.y), bend, (after.x, after.y)]
    if corners:
        axes.plot(
            *zip(*corners, strict=True), color=SOFT, linewidth=1.1, linestyle="--", zorder=1.8
        )
    return corners
