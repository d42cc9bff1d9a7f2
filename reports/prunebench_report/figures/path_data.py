"""Numbers and path data of SVG in few characters: a report has tens of thousands of points."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

Point = tuple[int, int]


def shortest(value: float, digits: int) -> str:
    """``value`` with at most ``digits`` decimals: '12.5', '3', '.25'."""
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    sign, size = ("-", text[1:]) if text.startswith("-") else ("", text)
    if size == "0":
        return size
    return sign + (size[1:] if size.startswith("0.") else size)


def polyline(points: Sequence[Point]) -> str:
    """Straight lines from each point to the next."""
    steps = (
        (after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(points)
    )
    start = f"M{_numbers(points[0])}"
    return f"{start}l{_numbers(itertools.chain.from_iterable(steps))}" if points[1:] else start


def ticks(places: Sequence[int]) -> str:
    """Vertical lines at these x, through all of a viewport with a y from 1 to 2.

    They are one zigzag, which needs half the characters of single lines. The ways from one line to
    the next are outside of the viewport, whose style has to be ``overflow: hidden``.
    """
    steps = (after - before for before, after in itertools.pairwise(places))
    ends = itertools.cycle(("V0", "V3"))
    return f"M{places[0]} 0V3" + "".join(f"h{step}{next(ends)}" for step in steps)


def _numbers(values: Iterable[int]) -> str:
    """A minus sign separates numbers as a blank does."""
    return "".join(f"{value}" if value < 0 else f" {value}" for value in values).lstrip()
