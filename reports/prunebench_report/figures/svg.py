"""Elements of SVG plots whose width follows the page while their text keeps its size.

Across, positions are in per cent of the plot's width; upwards and within a mark or a text, lengths
are in pixels. So one drawing serves a phone and a wide screen, and text has 11 px on both. Every
text is cleaned and escaped here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from markupsafe import Markup

from prunebench_report.figures.path_data import shortest
from prunebench_report.text import clean

Anchor = Literal["start", "middle", "end"]

MARKS = 8
"""Methods differ in shape as well as colour; beyond eight they repeat. The template has shapes."""
DENSE = MARKS
"""The mark of dense: the first shape, in the colour of text."""
FONT = 11.0
"""Size of text in pixels, as style.css has it."""
CHARACTER = 0.6 * FONT
"""Width of a character. An estimate: the reader's browser chooses the font."""


UNITS = 640
"""Across paths, which have no percentages."""


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: the mark and the dashes of what it names; ``bare`` lines have no marks."""

    name: str
    mark: int
    dashes: int = 0
    bare: bool = False

    @property
    def shape(self) -> int:
        return self.mark % MARKS

    @property
    def colour(self) -> str:
        return colour(self.mark)


@dataclass(frozen=True)
class Figure:
    """A plot in the page: ``desc`` says in words what it shows, ``notes`` what it cannot show."""

    caption: str
    desc: str
    svg: Markup
    notes: tuple[str, ...] = ()
    legend: tuple[LegendEntry, ...] = ()


def plain(text: str) -> str:
    """``text`` as content of an element or an attribute."""
    return escape(clean(text))


def percent(share: float) -> str:
    """A share of the width, to a tenth of a pixel on a wide screen."""
    return f"{shortest(100 * share, 2)}%"


def pixels(length: float) -> str:
    return shortest(length, 1)


def placed(**lengths: str) -> str:
    """Attributes such as x and y; those of zero are left out, because zero is their default."""
    return "".join(
        f' {name}="{length}"' for name, length in lengths.items() if length not in ("0", "0%")
    )


def line(kind: str | None, start: tuple[float, float], end: tuple[float, float]) -> str:
    """A straight line of the class ``kind``; points are (share of the width, pixels down)."""
    (x0, y0), (x1, y1) = start, end
    attribute = f' class="{kind}"' if kind else ""
    ends = placed(x1=percent(x0), y1=pixels(y0), x2=percent(x1), y2=pixels(y1))
    return f"<line{attribute}{ends}/>"


def segments(kind: str, ends: Iterable[tuple[tuple[float, float], tuple[float, float]]]) -> str:
    """Separate straight lines as one path, `UNITS` wide, for `stretched`."""
    data = "".join(
        f"M{shortest(UNITS * x0, 1)} {pixels(y0)}L{shortest(UNITS * x1, 1)} {pixels(y1)}"
        for (x0, y0), (x1, y1) in ends
    )
    return f'<path class="{kind}" d="{data}"/>'


def stretched(width: float, height: float, body: str) -> str:
    """``body`` in an inner viewport that fills the plot, because a path has no percentages.

    One unit is ``1 / width`` of the plot's width across, and one pixel down. The strokes in it need
    the style ``vector-effect: non-scaling-stroke``.
    """
    box = f"0 0 {shortest(width, 1)} {pixels(height)}"
    return f'<svg viewBox="{box}" preserveAspectRatio="none">{body}</svg>'


def lines(kind: str | None, points: Sequence[tuple[float, float]]) -> str:
    """Straight lines from each point to the next, because a path has no percentages."""
    return "".join(line(kind, a, b) for a, b in itertools.pairwise(points))


def colour(index: int) -> str:
    """The class that gives a method its colour."""
    return f"c{index}" if index == DENSE else f"c{index % MARKS}"


def mark(index: int, at: tuple[float, float], kind: str = "") -> str:
    """The mark of a method; ``kind`` 'hollow', 'grey' or nothing."""
    kinds = f"{colour(index)}{' ' + kind if kind else ''}"
    return f'<use href="#k{index % MARKS}" class="{kinds}"{_at(at)}/>'


def _at(point: tuple[float, float]) -> str:
    return placed(x=percent(point[0]), y=pixels(point[1]))


def label(
    text: str,
    at: tuple[float, float],
    *,
    shift: tuple[float, float] = (0, 0),
    anchor: Anchor = "start",
    kind: str = "",
) -> str:
    """Text at (share of the width, pixels down), moved by ``shift`` pixels."""
    # On the left edge, pixels are enough; elsewhere x is in per cent and dx adds the pixels.
    across = {"x": percent(at[0]), "dx": pixels(shift[0])} if at[0] else {"x": pixels(shift[0])}
    attributes = placed(**across, y=pixels(at[1] + shift[1]))
    if kind:
        attributes += f' class="{kind}"'
    if anchor != "start":
        attributes += f' text-anchor="{anchor}"'
    return f"<text{attributes}>{plain(text)}</text>"


def titled(title: str, body: str, href: str | None = None) -> str:
    """``body`` with a tooltip, and a link if there is one."""
    inner = f"<title>{plain(title)}</title>{body}"
    if href is None:
        return f"<g>{inner}</g>"
    # Not a tab stop: the keyboard reaches the same rows through the table.
    return f'<a tabindex="-1" href="{plain(href)}">{inner}</a>'


def plot(caption: str, desc: str, height: float, body: Iterable[str], kind: str = "") -> Markup:
    """The element. The axes' labels are outside of it; ``desc`` is for screen readers."""
    classes = f"plot {kind}".rstrip()
    words = f"<title>{plain(caption)}</title>" + (f"<desc>{plain(desc)}</desc>" if desc else "")
    return Markup(  # noqa: S704 - `plain` escaped every text
        f'<svg class="{classes}" role="group" style="height:{pixels(height)}px">'
        f"{words}{''.join(body)}</svg>"
    )
