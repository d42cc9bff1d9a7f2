"""One option of each item, at the least cost within a budget: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Option(NamedTuple):
    """One way to take an item."""

    cost: float
    """What is to be as small as possible in sum; it may be negative."""
    size: int
    """What counts towards the budget; not negative."""


class _Front(NamedTuple):
    """Choices of the first items that no other choice beats: larger ones cost less."""

    sizes: NDArray[np.int64]
    """Ascending, [states]."""
    costs: NDArray[np.float64]
    """Strictly descending, [states]."""


def choose(items: Sequence[Sequence[Option]], budget: int, resolution: int) -> list[int] | None:
    """The index of each item's option, with the least sum of costs and sizes of at most ``budget``.

    None if even the smallest options exceed the budget. Of choices that cost the same the smallest
    wins, then the one with earlier options. Dynamic programming over the choices of the first items
    that none of the same or a smaller size beats. It is exact as long as there are at most
    ``resolution`` of them for each item. If there are more, those within one part in ``resolution *
    items`` of the budget become one, the cheapest: then the result still fits, and costs no more
    than the best choice for a budget that is smaller by one part in ``resolution``.
    """
    smallest = [min(option.size for option in item) for item in items]
    # What later items need at least: a state that leaves less can never be completed.
    rest = sum(smallest)
    if rest > budget:
        return None
    states = resolution * max(1, len(items))
    front = _Front(np.zeros(1, dtype=np.int64), np.zeros(1))
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for item, least in zip(items, smallest, strict=True):
        rest -= least
        front, parents, options = _extended(front, item, budget - rest)
        if len(front.sizes) > states:
            kept = _thinned(front.sizes, max(1, budget // states))
            front = _Front(front.sizes[kept], front.costs[kept])
            parents, options = parents[kept], options[kept]
        steps.append((parents, options))
    # The last state is the largest, and so the cheapest.
    state, found = len(front.sizes) - 1, []
    for parents, options in reversed(steps):
        found.append(int(options[state]))
        state = int(parents[state])
    return found[::-1]


def _extended(
    front: _Front, item: Sequence[Option], limit: int
) -> tuple[_Front, NDArray[np.int64], NDArray[np.int64]]:
    """The front with one more item, and of each state the one it came from and the option.

    ``limit``: what is left of the budget if all later items take their smallest option.
    """
    sizes = np.array([option.size for option in item], dtype=np.int64)
    costs = np.array([option.cost for option in item], dtype=np.float64)
    # [options, states], so that of equal choices the one with the earlier option comes first
    all_sizes = (front.sizes[None] + sizes[:, None]).ravel()
    all_costs = (front.costs[None] + costs[:, None]).ravel()
    fits = np.flatnonzero(all_sizes <= limit)
    order = fits[np.lexsort((fits, all_costs[fits], all_sizes[fits]))]
    # A state stays only if it costs less than all that are as small: [states of the new front]
    sorted_costs = all_costs[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_costs)[:-1]])
    order = order[sorted_costs < before]
    options, parents = np.divmod(order, len(front.sizes))
    return _Front(all_sizes[order], all_costs[order]), parents, options


def _thinned(sizes: NDArray[np.int64], unit: int) -> NDArray[np.int64]:
    """Which states stay: the largest, and so the cheapest, of every ``unit`` of size."""
    parts = sizes // unit
    return np.flatnonzero(np.append(parts[1:] != parts[:-1], True))
