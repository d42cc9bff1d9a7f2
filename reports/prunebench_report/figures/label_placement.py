"""Where the labels of a scatter plot go, so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_REACHES = (9.0, 20.0, 34.0, 50.0)
_CLEARANCE = 5.0
_CROSSING = 18.0
"""How much further away a label may go to escape a line."""


@dataclass(frozen=True)
class Place:
    """The lower left corner of a label, and whether a line should lead to its point."""

    x: float
    y: float
    width: float
    height: float
    far: bool


def place(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    area: tuple[float, float, float, float],
    *,
    lines: Sequence[tuple[float, float, float, float]] = (),
    boxes: Sequence[Place] = (),
) -> list[Place | None]:
    """A place for the label of each point, or None where all are taken; all lengths in one unit.

    ``area`` is (left, bottom, right, top). No label covers a point, another label or one of ``boxes``; ``lines``,
    (x0, y0, x1, y1) along an axis, are avoided where there is a free place not much further away. Greedy, in order.
    """
    taken = list(boxes)
    result: list[Place | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        free = [
            (reach + _CROSSING * sum(_crosses(spot, line) for line in lines), index, spot)
            for reach in _REACHES
            for index, spot in enumerate(_around(x, y, width, height, reach))
            if _inside(spot, area)
            and not any(_meets(spot, other) for other in taken)
            and not any(_covers(spot, mark) for mark in points)
        ]
        chosen = min(free, key=lambda option: option[:2])[2] if free else None
        result.append(chosen)
        if chosen:
            taken.append(chosen)
    return result


def _around(x: float, y: float, width: float, height: float, reach: float) -> list[Place]:
    spots = []
    for right, up in _SIDES:
        away = reach if not (right and up) else reach * 0.75
        left = x + right * away - (width if right < 0 else width / 2 if right == 0 else 0)
        bottom = y + up * away - (height if up < 0 else height / 2 if up == 0 else 0)
        spots.append(Place(left, bottom, width, height, reach > _REACHES[0]))
    return spots


def _inside(spot: Place, area: tuple[float, float, float, float]) -> bool:
    left, bottom, right, top = area
    return (
        left <= spot.x
        and bottom <= spot.y
        and spot.x + spot.width <= right
        and spot.y + spot.height <= top
    )


def _meets(one: Place, other: Place) -> bool:
    apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
    return not (apart_x or one.y + one.height <= other.y or other.y + other.height <= one.y)


def _covers(spot: Place, mark: tuple[float, float]) -> bool:
    x, y = mark
    return (
        spot.x - _CLEARANCE < x < spot.x + spot.width + _CLEARANCE
        and spot.y - _CLEARANCE < y < spot.y + spot.height + _CLEARANCE
    )


def _crosses(spot: Place, line: tuple[float, float, float, float]) -> bool:
    x0, y0, x1, y1 = line
    return (
        spot.x < max(x0, x1)
        and min(x0, x1) < spot.x + spot.width
        and spot.y < max(y0, y1) + 1
        and min(y0, y1) - 1 < spot.y + spot.height
    )
