"""Numbers and path data in few characters mean what they did in many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import svg_paths
from prunebench_report.figures.path_data import polyline, shortest, ticks

points = st.tuples(st.integers(-2000, 2000), st.integers(-2000, 2000))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 2, "0"),
        (-0.001, 2, "0"),
        (0.25, 2, ".25"),
        (-0.25, 2, "-.25"),
        (12.5, 2, "12.5"),
        (10.0, 1, "10"),
        (100.0, 0, "100"),
        (120.74999999999999, 2, "120.75"),
        (0.999, 2, "1"),
    ],
)
def test_a_number_has_no_character_too_many(value, digits, text):
    assert shortest(value, digits) == text


@given(st.floats(-1e4, 1e4), st.integers(0, 3))
def test_a_short_number_is_the_rounded_number(value, digits):
    assert float(shortest(value, digits)) == pytest.approx(value, abs=0.51 * 10.0**-digits)


@given(st.lists(points, min_size=2, max_size=30))
def test_a_polyline_goes_through_its_points(given_points):
    assert svg_paths.corners(polyline(given_points)) == given_points


@given(st.lists(st.integers(0, 640), min_size=1, max_size=30, unique=True).map(sorted))
def test_ticks_are_the_only_lines_in_the_viewport(places):
    upright = []
    for (x0, y0), (x1, y1) in svg_paths.lines(ticks(places)):
        if x0 == x1:
            # Through all of it, from 1 to 2
            low, high = sorted((y0, y1))
            assert low < 1
            assert high > 2
            upright.append(x0)
        else:
            # Too far outside for the width of the line to reach into it
            assert y0 == y1
            assert abs(y0 - 1.5) >= 1.5
    assert upright == places
