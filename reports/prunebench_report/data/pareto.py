"""Dominance and the Pareto frontier. Larger is better in every coordinate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


def dominates(better: Sequence[float], worse: Sequence[float]) -> bool:
    """Whether ``better`` is at least as good in every coordinate and better in one."""
    above = False
    for a, b in zip(better, worse, strict=True):
        if a < b:
            return False
        above = above or a > b
    return above


class Measured(NamedTuple):
    """A value with its 95 % interval; None if it is exact, or if its error is not known."""

    value: float
    interval: tuple[float, float] | None = None


def surely_dominates(better: Sequence[Measured], worse: Sequence[Measured]) -> bool:
    """Whether ``better`` dominates and is better by more than the errors in one coordinate."""
    if not dominates([one.value for one in better], [one.value for one in worse]):
        return False
    return any(_apart(a, b) for a, b in zip(better, worse, strict=True))


def _apart(a: Measured, b: Measured) -> bool:
    """Whether ``a`` lies above ``b`` and their intervals do not overlap."""
    low = a.interval[0] if a.interval else a.value
    high = b.interval[1] if b.interval else b.value
    return low > high


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates, by rising x.

    Equal points are either all on the frontier or all off it.
    """
    # Walk from large x to small x: a point is dominated if one before it is at least as high.
    order = sorted(
        range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index)
    )
    kept: list[int] = []
    highest: tuple[float, float] | None = None
    for index in order:
        point = points[index]
        if highest is None or point[1] > highest[1] or point == highest:
            kept.append(index)
            highest = point
    return sorted(kept, key=lambda index: (points[index], index))


def settled_speedup(row: Mapping[str, Any], key: str = "inter_token_speedup") -> float | None:
    """The speed-up that counts in a comparison: 1 if its interval contains 1, i.e. no change."""
    value, low, high = row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high")
    if value is not None and low is not None and high is not None and low <= 1 <= high:
        return 1.0
    return value
