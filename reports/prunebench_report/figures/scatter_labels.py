"""The labels of a scatter plot: names beside points, which way is better, and the quality gate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench_report.figures.label_placement import LabelBox, place_labels
from prunebench_report.figures.plot import FONT, SOFT, Panel, Point, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Width of a character. An estimate: the reader's browser chooses the font.
_CHARACTER = 0.6 * FONT

Line = tuple[float, float, float, float]


def add_names(
    axes: Axes,
    panel: Panel,
    points: Sequence[Point],
    frontier: Sequence[tuple[float, float]],
    hints: Sequence[Text],
) -> list[Text]:
    """Names beside the points that cover nothing; those far away get a line to their point.

    ``frontier`` are the corners of the drawn frontier, which names avoid.
    """
    box = axes.get_window_extent()
    area = (box.x0 + 2, box.y0 + 2, box.x1 - 2, box.y1 - 2)
    # The best points choose their place first; dense is known by its cross-hair and chooses last.
    ordered = sorted(points, key=lambda p: (p.method == "dense", -panel.y_better * p.y))
    pixels = [to_pixel(axes, p.x, p.y) for p in ordered]
    lines = [(*to_pixel(axes, *a), *to_pixel(axes, *b)) for a, b in itertools.pairwise(frontier)]
    lines += [line for point in ordered for line in _lines_through(axes, panel, point)]
    widths = [_width(p.short) for p in ordered]
    boxes = [_box(hint) for hint in hints]
    placed = place_labels(pixels, widths, FONT * 1.25, area, lines=lines, boxes=boxes)
    texts = []
    for point, (x, y), label in zip(ordered, pixels, placed, strict=True):
        if label is None:
            continue
        # Text stands on its baseline, which is above the bottom of its box.
        middle, baseline = label.x + label.width / 2, label.y + 0.3 * label.height
        texts.append(Text(middle, baseline, point.short, "middle", "name"))
        if label.far:
            # The point of the box that is nearest to the mark
            near = (
                min(max(x, label.x), label.x + label.width),
                min(max(y, label.y), label.y + label.height),
            )
            end = axes.transData.inverted().transform(near)
            axes.plot([point.x, end[0]], [point.y, end[1]], color=SOFT, linewidth=0.6, zorder=2.5)
    return texts


def _lines_through(axes: Axes, panel: Panel, point: Point) -> list[Line]:
    """What is drawn through a point, in pixels: dense's cross-hair and the error bars."""
    box = axes.get_window_extent()
    x, y = to_pixel(axes, point.x, point.y)
    lines = []
    if point.method == "dense":
        lines += [(box.x0, y, box.x1, y), (x, box.y0, x, box.y1)]
    if point.x_range:
        left, right = (to_pixel(axes, end, point.y)[0] for end in point.x_range)
        lines.append((left, y, right, y))
    if point.y_range and panel.log_y:
        bottom, top = (to_pixel(axes, point.x, end)[1] for end in point.y_range)
        lines.append((x, bottom, x, top))
    return lines


def hints(axes: Axes, panel: Panel, gate: float) -> list[Text]:
    """Which way is better, and the gate if it is in sight."""
    box = axes.get_window_extent()
    x, anchor = (box.x1 - 4, "end") if panel.x_better > 0 else (box.x0 + 4, "start")
    y, arrow = (box.y1 - 12, "↗") if panel.y_better > 0 else (box.y0 + 6, "↙")
    better = f"better {arrow}" if arrow == "↗" else f"{arrow} better"
    texts = [Text(x, y, better, anchor, "hint")]  # type: ignore[arg-type]
    if shows_gate(axes, panel, gate):
        height = to_pixel(axes, 0, 100 * gate)[1] - 11
        texts.append(Text(box.x1 - 4, height, f"gate {100 * gate:g} %", "end", "hint"))
    return texts


def shows_gate(axes: Axes, panel: Panel, gate: float) -> bool:
    low, high = axes.get_ylim()
    return panel.gated and low < 100 * gate < high


def to_pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _box(text: Text) -> LabelBox:
    width = _width(text.text)
    left = text.x - (width if text.anchor == "end" else 0)
    return LabelBox(left, text.y - 3, width, FONT * 1.2, far=False)


def _width(text: str) -> float:
    return _CHARACTER * len(text) + 2
