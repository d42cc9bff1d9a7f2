"""Which points are worth having: dominance and the Pareto frontier. Larger is better in every coordinate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def dominates(better: Sequence[float], worse: Sequence[float]) -> bool:
    """Whether ``better`` is nowhere below ``worse`` and somewhere above it."""
    above = False
    for a, b in zip(better, worse, strict=True):
        if a < b:
            return False
        above = above or a > b
    return above


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, by rising x; equal points are all on it or all off it."""
    order = sorted(
        range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index)
    )
    kept: list[int] = []
    best: tuple[float, float] | None = (
        None  # the highest point seen, i.e. with an x at least as large
    )
    for index in order:
        point = points[index]
        if best is None or point[1] > best[1] or point == best:
            kept.append(index)
            best = point
    return sorted(kept, key=lambda index: (points[index], index))


def settled_speedup(row: Mapping[str, Any], key: str = "inter_token_speedup") -> float | None:
    """The speed-up that counts in a comparison: 1 where its interval contains 1, because that is no change."""
    value, low, high = row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high")
    if value is not None and low is not None and high is not None and low <= 1 <= high:
        return 1.0
    return value
