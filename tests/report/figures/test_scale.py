"""Axes: ticks, and which values they leave out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench_report.figures.scale import (
    doubling,
    largest_drawn,
    linear_around,
    log_around,
    nice,
    tick_text,
)


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([25, 26, 41, 52, 118, 163, 812, 18234], 18234),  # no gap
        ([25, 26, 41, 52, 118, 163, 812, 3e8], 812),
        ([25, 41, 52, 60, 118, 163, 1e6, 3e8], 163),
        ([25, 3e8], 3e8),  # nothing to compare with
        ([25, 50, 3e8], 50),
        ([1e8, 2e8, 3e8], 3e8),
        ([25, 1e8, 2e8, 3e8], 3e8),  # most are large
    ],
)
def test_a_logarithmic_axis_leaves_out_what_is_decades_above_the_rest(values, largest):
    assert largest_drawn(values, log=True) == largest
    assert log_around(values).beyond(max(values)) == (largest != max(values))


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([1.0, 1.0, 1.01, 1.32], 1.32),  # a true speed-up is not extreme
        ([0.2, 0.5, 1.0, 1.1, 40.0], 1.1),
        ([3, 5, 97, 100, 1e4], 100),
        ([0, 0, 5], 5),
    ],
)
def test_a_linear_axis_leaves_out_what_is_many_times_the_rest(values, largest):
    assert largest_drawn(values) == largest


@given(st.lists(st.floats(1e-6, 1e30), min_size=1, max_size=12), st.booleans())
def test_any_values_have_a_scale_with_ticks_inside(values, log):
    scale = log_around(values) if log else linear_around(values)
    assert scale.low < scale.high
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert all(0 <= scale.share(value) <= 1 for value in values)
    assert sum(scale.beyond(value) for value in values) <= len(values) // 3


@given(st.floats(1e-6, 1e12), st.floats(1, 1e4))
def test_a_logarithmic_axis_has_at_least_two_ticks(low, ratio):
    assert len(log_around([low, low * ratio]).ticks) >= 2


def test_noise_does_not_fill_the_axis():
    scale = linear_around([0.998, 1.002], least=0.1)
    assert scale.share(1.002) - scale.share(0.998) < 0.05


def test_doubled_sizes_are_evenly_apart():
    scale = doubling([1, 8, 2, 4])
    assert scale.ticks == (1, 2, 4, 8)
    steps = [scale.share(b) - scale.share(a) for a, b in ((1, 2), (2, 4), (4, 8))]
    assert steps == pytest.approx([steps[0]] * 3)


@given(st.floats(1e-9, 1e15))
def test_nice_steps_are_near_and_not_below(value):
    step = nice(value)
    assert value * (1 - 1e-8) <= step <= 5 * value
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(lead) in (1, 2, 5, 10)


def test_ticks_are_short():
    assert [tick_text(one) for one in (0.05, 1000, 2e8)] == ["0.05", "1,000", "2e8"]
