"""Draws what changed from one run to another: before and after, a row for each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunebench_report.figures.axes import Better, Frame
from prunebench_report.figures.scale import Scale, linear_around, log_around
from prunebench_report.figures.svg import (
    Figure,
    LegendEntry,
    colour,
    label,
    line,
    mark,
    plot,
    titled,
)
from prunebench_report.text import number, shorten_middle

_ROW = 21.0
_LONGEST_NAME = 21
# The first shape, hollow in A and filled in B, in the colour of the second method: neither means
# good or bad.
_MARK = 1


@dataclass(frozen=True)
class Change:
    """The value of one cell in both runs; ``href`` is where its tooltip leads."""

    name: str
    before: float
    after: float
    href: str


def changes(
    caption: str,
    rows: Sequence[Change],
    x_label: str,
    *,
    better: Better,
    log: bool = False,
) -> Figure:
    """A hollow mark for the value in A, a filled one for that in B, and a line between them."""
    values = [value for row in rows for value in (row.before, row.after)]
    x = log_around(values) if log else linear_around(values)
    height = _ROW * len(rows)
    frame = Frame(x, Scale(0, len(rows), ()), x_label, "", x_better=better, height=height)
    parts = [frame.draw()]
    for index, row in enumerate(rows):
        y = _ROW * (index + 0.5)
        before, after = (x.share(row.before), y), (x.share(row.after), y)
        # The line first, so that both marks cover its ends.
        body = line(f"range {colour(_MARK)}", before, after)
        body += mark(_MARK, before, "hollow") + mark(_MARK, after)
        shown = shorten_middle(row.name, _LONGEST_NAME)
        body += label(shown, (0, y), shift=(-8, 4), anchor="end")
        title = f"{row.name}: {number(row.before)} in A, {number(row.after)} in B"
        parts.append(titled(title, body, row.href))
    desc = "; ".join(f"{r.name} {number(r.before)} to {number(r.after)}" for r in rows)
    svg = plot(caption, desc, height, parts, kind="named")
    return Figure(caption, desc, svg, legend=(LegendEntry("B, hollow in A", _MARK),))
