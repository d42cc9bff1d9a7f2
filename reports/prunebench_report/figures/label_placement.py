"""Where the labels of a plot go, so that they cover neither each other, nor a point, nor a line.

A plot's width follows the page. So an edge is a share of the width plus pixels, and what is apart
is apart at every width of a range: the distance of two edges is linear in the width, so that
looking at both ends of the range is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Edge = tuple[float, float]
"""A share of the width, and pixels from there."""

# Directions from a point, best first: beside it, above and below, then diagonally.
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_BESIDE = 2
"""This many of the directions, the first ones, are right beside the point."""
_DISTANCES = (9.0, 20.0, 34.0, 50.0)
_DIAGONAL = 0.75
# Free space that a label keeps around points and lines.
_CLEARANCE = 5.0
# How much further away a label may go to avoid one line that it may cross.
_CROSSING = 18.0


@dataclass(frozen=True)
class Block:
    """Something that takes room: edges across, and pixels from the top."""

    left: Edge
    right: Edge
    top: float
    bottom: float


@dataclass(frozen=True)
class Label:
    """Where a label goes; ``far`` says that it needs a line to its point.

    ``side`` is -1 if the label ends at its point's left, 1 if it starts at its right, else 0.
    ``shift`` has pixels from the point to the label's near end and to its vertical middle.
    """

    block: Block
    side: int
    shift: tuple[float, float]
    far: bool


def point_block(at: tuple[float, float]) -> Block:
    """The room of a mark at (share of the width, pixels down)."""
    share, y = at
    return Block((share, -_CLEARANCE), (share, _CLEARANCE), y - _CLEARANCE, y + _CLEARANCE)


def line_block(start: tuple[float, float], end: tuple[float, float]) -> Block:
    """The room of a line along an axis."""
    left, right = sorted((start[0], end[0]))
    top, bottom = sorted((start[1], end[1]))
    return Block((left, -1), (right, 1), top - 1, bottom + 1)


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    area: tuple[float, float, float],
    *,
    taken: Sequence[Block] = (),
    avoided: Sequence[Block] = (),
) -> list[Label | None]:
    """A place for the label of each point, or None if there is no room.

    Points are (share of the width, pixels down); ``widths`` and ``height`` are those of the labels
    in pixels. ``area`` is (narrowest width, widest width, height) of the plot. No label covers a
    point, another label or a block of ``taken``; those ``avoided`` only if a free place is much
    further away. Greedy: earlier points choose first.
    """
    narrow, wide, bottom = area
    # Every test looks at both widths: see the module's docstring.
    within = (narrow, wide)
    blocked = [*taken, *map(point_block, points)]
    result: list[Label | None] = [None] * len(points)
    # First those with room right beside their point: a label that has to go elsewhere must not
    # push them all away, one after the other, as in a column of points.
    for beside in (True, False):
        for number, (point, width) in enumerate(zip(points, widths, strict=True)):
            if result[number] is not None:
                continue
            # The index keeps the order of `_around` among places that are equally good.
            free = [
                (distance + _CROSSING * _crossed(one.block, avoided, within), index, one)
                for distance in (_DISTANCES[:1] if beside else _DISTANCES)
                for index, one in enumerate(_around(point, width, height, distance))
                if not (beside and (index >= _BESIDE or _crossed(one.block, avoided, within)))
                and one.block.top >= 0
                and one.block.bottom <= bottom
                and _inside(one.block, within)
                and all(apart(one.block, other, within) for other in blocked)
            ]
            if free:
                chosen = min(free, key=lambda option: option[:2])[2]
                result[number] = chosen
                blocked.append(chosen.block)
    return result


def apart(one: Block, other: Block, widths: Sequence[float]) -> bool:
    """Whether two blocks do not overlap at any width between the ``widths``."""
    if one.bottom <= other.top or other.bottom <= one.top:
        return True
    return _before(one.right, other.left, widths) or _before(other.right, one.left, widths)


def _before(one: Edge, other: Edge, widths: Sequence[float]) -> bool:
    return all(_at(one, width) <= _at(other, width) for width in widths)


def _at(edge: Edge, width: float) -> float:
    return edge[0] * width + edge[1]


def _inside(block: Block, widths: Sequence[float]) -> bool:
    return _before((0, 0), block.left, widths) and _before(block.right, (1, 0), widths)


def _crossed(block: Block, lines: Sequence[Block], widths: Sequence[float]) -> int:
    return sum(not apart(block, line, widths) for line in lines)


def _around(
    point: tuple[float, float], width: float, height: float, distance: float
) -> list[Label]:
    share, y = point
    found = []
    for right, down in _SIDES:
        away = distance * _DIAGONAL if right and down else distance
        near = right * away
        # A label to the left ends at the point, one to the right starts there.
        left = near - (width if right < 0 else width / 2 if right == 0 else 0)
        middle = down * (away + height / 2)
        top = y + middle - height / 2
        block = Block((share, left), (share, left + width), top, top + height)
        found.append(Label(block, right, (near, middle), distance > _DISTANCES[0]))
    return found
