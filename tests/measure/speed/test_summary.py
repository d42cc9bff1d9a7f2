from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.measure.speed.summary import paired_ratio, summary

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


@given(TIMES)
def test_a_summary_is_the_order_statistics(samples):
    found = summary(samples)
    ordered = sorted(samples)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    assert found.count == len(samples)
    assert (found.minimum, found.maximum) == (ordered[0], ordered[-1])
    assert found.median == pytest.approx(median)
    assert found.mean == pytest.approx(sum(samples) / len(samples))
    assert found.minimum <= found.median <= found.p90 <= found.p99 <= found.maximum


def test_no_samples_are_no_summary():
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_a_load_on_both_models_of_a_round_cancels():
    load = np.random.default_rng(1).uniform(1, 5, size=20)
    found = paired_ratio(0.3 * load, 0.2 * load)
    assert [found.low, found.estimate, found.high] == pytest.approx([1.5, 1.5, 1.5])
    assert found.rounds == 20


@given(TIMES, st.floats(0.1, 10))
def test_the_interval_holds_the_estimate_and_turns_over_with_the_series(dense, factor):
    pruned = [value * factor for value in reversed(dense)]
    found = paired_ratio(dense, pruned)
    if len(dense) >= 6:
        assert found.low <= found.estimate <= found.high
    estimate = np.median(np.array(dense) / np.array(pruned))
    assert found.estimate == pytest.approx(estimate)


def test_five_rounds_have_a_ratio_but_no_interval():
    found = paired_ratio([2.0] * 5, [1.0] * 5)
    assert (found.estimate, found.low, found.high, found.rounds) == (2, None, None, 5)


@pytest.mark.parametrize(
    ("dense", "pruned"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0])]
)
def test_rounds_that_do_not_pair_up_are_refused(dense, pruned):
    with pytest.raises(ValueError, match="round"):
        paired_ratio(dense, pruned)
