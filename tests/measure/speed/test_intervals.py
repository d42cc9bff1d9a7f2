from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.speed.intervals import (
    fewest_samples,
    lower_bound,
    median_interval,
    upper_bound,
)

ROUNDS = st.lists(st.floats(0.1, 10), min_size=6, max_size=60)


def test_six_samples_are_the_fewest_that_bound_a_median_on_both_sides_at_95_per_cent():
    assert fewest_samples(0.025) == 6
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert median_interval([1, 2, 3, 4, 5, 6]) is not None


@pytest.mark.parametrize(("cells", "rounds"), [(1, 5), (2, 6), (8, 8), (12, 8), (100, 11)])
def test_a_claim_about_the_best_of_many_cells_takes_more_rounds(cells, rounds):
    samples = list(range(1, rounds + 1))
    assert fewest_samples(0.05 / cells) == rounds
    assert lower_bound(samples, 0.05 / cells) is not None
    assert lower_bound(samples[1:], 0.05 / cells) is None


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_bound_is_an_order_statistic_that_misses_exactly_as_often(rank):
    samples = [float(value) ** 2 for value in range(20)]
    miss = sum(comb(20, below) for below in range(rank)) / 2**20
    assert lower_bound(samples, miss) == pytest.approx(samples[rank - 1])


@given(ROUNDS, st.floats(0.001, 0.4))
def test_a_bound_lies_among_the_samples_and_not_above_the_median(samples, miss):
    bound = lower_bound(samples, miss)
    if bound is None:
        assert len(samples) < fewest_samples(miss)
    else:
        assert min(samples) <= bound <= np.median(samples)


@given(ROUNDS)
def test_asking_for_more_confidence_never_narrows_the_interval(samples):
    narrow, wide = median_interval(samples, 0.8), median_interval(samples, 0.95)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@given(ROUNDS, st.floats(0.5, 2))
def test_the_interval_scales_with_the_samples(samples, factor):
    low, high = median_interval(samples)
    scaled = median_interval([factor * sample for sample in samples])
    assert scaled == pytest.approx((factor * low, factor * high))


@pytest.mark.parametrize("count", [6, 7, 8, 10, 16, 40])
@pytest.mark.parametrize("noise", ["normal", "laplace", "lognormal"])
def test_the_interval_holds_the_median_in_95_of_100_cases(count, noise):
    draw = getattr(np.random.default_rng(count), noise)
    trials = draw(0, 0.3, size=(3000, count))
    median = 1.0 if noise == "lognormal" else 0.0
    found = [median_interval(list(trial)) for trial in trials]
    share = np.mean([low <= median <= high for low, high in found])
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("count", [6, 9, 10, 25])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_between_two_order_statistics_it_is_that_of_hettmansperger_and_sheather(count, part, rank):
    def misses(one):
        return sum(comb(count, below) for below in range(one)) / 2**count

    if 2 * rank >= count:
        return
    samples = [float(value) ** 2 for value in range(count)]
    miss = misses(rank) + part * (misses(rank + 1) - misses(rank))
    weight = (count - rank) * part / (rank + (count - 2 * rank) * part)
    expected = (1 - weight) * samples[rank - 1] + weight * samples[rank]
    assert lower_bound(samples, miss) == pytest.approx(expected)
    assert upper_bound([-one for one in samples], miss) == pytest.approx(-expected)


@pytest.mark.parametrize(("count", "middle"), [(6, 3), (7, 4), (8, 4), (9, 5)])
def test_a_bound_with_little_confidence_is_the_sample_at_the_middle(count, middle):
    """It misses in almost half of all cases, and does not cross the middle to miss in more."""
    samples = list(range(1, count + 1))
    assert lower_bound(samples, 0.49 if count % 2 == 0 else 0.5) == middle
