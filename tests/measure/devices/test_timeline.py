from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.measure.devices.timeline import Point, decimate, parse

GPU = st.none() | st.integers(0, 2**40)
POINTS = st.lists(
    st.builds(Point, st.floats(5, 5000), st.integers(0, 2**40), GPU, GPU), min_size=1, max_size=300
).map(lambda points: sorted(points, key=lambda point: point.time))


def test_lines_become_points_and_half_a_line_nothing():
    text = "1.5 100 - -\n1.6 200 30 40\nrubbish\n1.7 300 - 50\n1.8 4"
    assert parse(text) == [Point(1.5, 100), Point(1.6, 200, 30, 40), Point(1.7, 300, None, 50)]


@settings(max_examples=200)
@given(POINTS, st.integers(5, 80))
def test_no_peak_is_lost_and_nothing_is_made_up(points, limit):
    found = decimate(points, 5.0, [], limit)
    assert 0 < len(found.time_s) == len(found.rss_bytes) <= limit
    assert found.time_s == sorted(found.time_s)
    assert found.time_s[0] == round(points[0].time - 5.0, 4)
    assert max(found.rss_bytes) == max(point.rss for point in points)
    assert min(found.rss_bytes) == min(point.rss for point in points)
    given_pairs = {(round(point.time - 5.0, 4), point.rss) for point in points}
    assert set(zip(found.time_s, found.rss_bytes, strict=True)) <= given_pairs
    gpu = [point.gpu for point in points if point.gpu is not None]
    assert (found.gpu_bytes is None) == (not gpu)
    if gpu:
        assert max(found.gpu_bytes) == max(gpu)
    device = [point.gpu_device for point in points if point.gpu_device is not None]
    if found.gpu_device_bytes is not None:
        assert max(found.gpu_device_bytes) == max(device)


def test_few_points_stay_as_they_are():
    points = [Point(10 + index / 100, index) for index in range(600)]
    assert decimate(points, 10.0, []).rss_bytes == list(range(600))


def test_a_long_run_keeps_a_spike_of_one_sample_at_its_time():
    points = [Point(index / 100, 7 if index == 123_456 else 5) for index in range(200_000)]
    found = decimate(points, 0.0, [])
    assert len(found.time_s) <= 600
    assert found.time_s[found.rss_bytes.index(7)] == 1234.56


def test_the_gpu_line_is_that_of_the_process_and_gaps_are_filled():
    points = [Point(0, 1), Point(1, 1, 20, 90), Point(2, 1), Point(3, 1, None, 30)]
    found = decimate(points, 0.0, [])
    assert found.gpu_bytes == [20, 20, 20, 30]
    assert found.gpu_device_bytes == [90, 90, 90, 30]
    assert (
        decimate([Point(0, 1, None, 90)], 0.0, []).gpu_device_bytes is None
    )  # it is the line already
