"""Reads the path data of an SVG independently of what wrote it."""

from __future__ import annotations

import re

Point = tuple[float, float]


def lines(data: str) -> list[tuple[Point, Point]]:
    """The ends of every straight line that a path of M, m, L, l, H, h, V and v draws."""
    found: list[tuple[Point, Point]] = []
    x = y = 0.0
    for command, rest in re.findall(r"([MmLlHhVv])([^A-Za-z]*)", data):
        values = [float(one) for one in re.findall(r"-?(?:\d+(?:\.\d+)?|\.\d+)", rest)]
        width = 1 if command in "HhVv" else 2
        assert values, data
        assert len(values) % width == 0, data
        for index in range(0, len(values), width):
            step = values[index : index + width]
            dx = step[0] if command in "MmLlHh" else None
            dy = step[-1] if command in "MmLlVv" else None
            relative = command.islower()
            after = (
                x if dx is None else (x if relative else 0.0) + dx,
                y if dy is None else (y if relative else 0.0) + dy,
            )
            # Further pairs after a move are lines.
            if command not in "Mm" or index:
                found.append(((x, y), after))
            x, y = after
    return found


def corners(data: str) -> list[Point]:
    """The points of a path that is one line."""
    drawn = lines(data)
    return [drawn[0][0], *(after for _, after in drawn)]
