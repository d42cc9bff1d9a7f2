from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench_report.data.pareto import dominates, frontier, settled_speedup

values = st.integers(-4, 4).map(float) | st.floats(-100, 100)
clouds = st.lists(st.tuples(values, values), max_size=30)


@given(clouds)
def test_the_frontier_is_exactly_what_nothing_dominates(points):
    kept = set(frontier(points))
    for index, point in enumerate(points):
        assert (index in kept) == (not any(dominates(other, point) for other in points))


@given(clouds)
def test_the_frontier_falls_while_x_rises(points):
    steps = [points[index] for index in frontier(points)]
    for before, after in itertools.pairwise(steps):
        assert before == after or (before[0] < after[0] and before[1] > after[1])


@given(clouds, st.randoms())
def test_the_frontier_does_not_depend_on_the_order(points, generator):
    shuffled = list(points)
    generator.shuffle(shuffled)
    assert sorted(points[i] for i in frontier(points)) == sorted(
        shuffled[i] for i in frontier(shuffled)
    )


@pytest.mark.parametrize(("one", "other"), [((1, 2), (1, 2)), ((2, 1), (1, 2))])
def test_equal_and_mixed_points_do_not_dominate(one, other):
    assert not dominates(one, other)


def test_a_speed_up_within_its_noise_counts_as_none():
    def row(value, low, high):
        return {
            "inter_token_speedup": value,
            "inter_token_speedup_low": low,
            "inter_token_speedup_high": high,
        }

    assert settled_speedup(row(1.02, 0.99, 1.05)) == 1
    assert settled_speedup(row(1.1, 1.08, 1.12)) == 1.1
    assert settled_speedup(row(1.1, None, None)) == 1.1
    assert settled_speedup(row(None, None, None)) is None
