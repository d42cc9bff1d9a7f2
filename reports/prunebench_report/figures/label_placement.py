"""Where the labels of a scatter plot go, so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Directions from a point, best first: beside it, above and below, then diagonally.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (9.0, 20.0, 34.0, 50.0)
_DIAGONAL = 0.75
# Free space that a label keeps around points.
_CLEARANCE = 5.0
# How much further away a label may go to avoid one line.
_CROSSING = 18.0


@dataclass(frozen=True)
class LabelBox:
    """Lower left corner and size of a label; ``far`` says that it needs a line to its point."""

    x: float
    y: float
    width: float
    height: float
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    area: tuple[float, float, float, float],
    *,
    lines: Sequence[tuple[float, float, float, float]] = (),
    boxes: Sequence[LabelBox] = (),
) -> list[LabelBox | None]:
    """A box for the label of each point, or None if there is no room; all lengths in one unit.

    ``area`` is (left, bottom, right, top). No label covers a point, another label or one of
    ``boxes``. ``lines`` along an axis, (x0, y0, x1, y1), are avoided if a free box is not much
    further away. Greedy: earlier points choose first.
    """
    taken = list(boxes)
    result: list[LabelBox | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        # The index keeps the order of `_around` among boxes that are equally good.
        free = [
            (distance + _CROSSING * sum(_crosses(box, line) for line in lines), index, box)
            for distance in _DISTANCES
            for index, box in enumerate(_around(x, y, width, height, distance))
            if _inside(box, area)
            and not any(_overlap(box, other) for other in taken)
            and not any(_covers(box, point) for point in points)
        ]
        chosen = min(free, key=lambda option: option[:2])[2] if free else None
        result.append(chosen)
        if chosen:
            taken.append(chosen)
    return result


def _around(x: float, y: float, width: float, height: float, distance: float) -> list[LabelBox]:
    boxes = []
    for right, up in _SIDES:
        away = distance * _DIAGONAL if right and up else distance
        # A label to the left ends at the point, one to the right starts there.
        left = x + right * away - (width if right < 0 else width / 2 if right == 0 else 0)
        bottom = y + up * away - (height if up < 0 else height / 2 if up == 0 else 0)
        boxes.append(LabelBox(left, bottom, width, height, distance > _DISTANCES[0]))
    return boxes


def _inside(box: LabelBox, area: tuple[float, float, float, float]) -> bool:
    left, bottom, right, top = area
    across = left <= box.x and box.x + box.width <= right
    return across and bottom <= box.y and box.y + box.height <= top


def _overlap(one: LabelBox, other: LabelBox) -> bool:
    apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
    return not (apart_x or one.y + one.height <= other.y or other.y + other.height <= one.y)


def _covers(box: LabelBox, point: tuple[float, float]) -> bool:
    x, y = point
    return (
        box.x - _CLEARANCE < x < box.x + box.width + _CLEARANCE
        and box.y - _CLEARANCE < y < box.y + box.height + _CLEARANCE
    )


def _crosses(box: LabelBox, line: tuple[float, float, float, float]) -> bool:
    x0, y0, x1, y1 = line
    across = box.x < max(x0, x1) and min(x0, x1) < box.x + box.width
    # A horizontal line has no height of its own, so give it one unit on either side.
    return across and box.y < max(y0, y1) + 1 and min(y0, y1) - 1 < box.y + box.height
