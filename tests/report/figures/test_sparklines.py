"""The timeline and the sample strips of a card as geometry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.record.memory import PhaseSpan, Timeline
from prunebench.record.speed import LatencySamples
from prunebench_report.figures.sparklines import WIDTH, sample_strip, timeline


def test_the_timeline_keeps_its_peak_and_stays_small():
    times = [index / 100 for index in range(600)]
    values = [10**9] * 600
    values[301] = 3 * 10**9
    spans = [
        PhaseSpan(phase="load", start_s=0, end_s=1),
        PhaseSpan(phase="prune", start_s=1, end_s=6),
    ]
    drawn = timeline(Timeline(time_s=times, rss_bytes=values, phases=spans))
    heights = [float(point.split()[1]) for point in drawn["lines"][0]["path"][1:].split("L")]
    assert len(heights) <= 241
    assert min(heights) == pytest.approx(0, abs=1)
    assert [band["label"] for band in drawn["bands"]] == ["load", "prune"]
    assert "3.00 GB" in drawn["title"]


@pytest.mark.parametrize(
    "line",
    [
        None,
        Timeline(time_s=[], rss_bytes=[], phases=[]),
        Timeline(time_s=[0.0], rss_bytes=[1], phases=[]),
        Timeline(time_s=[0.0, 1.0], rss_bytes=[1], phases=[]),
    ],
)
def test_too_few_samples_make_no_timeline(line):
    assert timeline(line) is None


def test_a_timeline_of_nothing_but_zeros_is_drawn():
    assert timeline(Timeline(time_s=[0.0, 0.0], rss_bytes=[0, 0], phases=[]))["levels"]


def test_the_gpu_has_a_line_of_its_own():
    line = Timeline(time_s=[0.0, 1.0], rss_bytes=[5, 6], gpu_bytes=[1, 2], phases=[])
    assert [one["style"] for one in timeline(line)["lines"]] == ["", "dashed"]
    drawn = timeline(line.model_copy(update={"gpu_device_bytes": [3, 40]}))
    assert [one["style"] for one in drawn["lines"]] == ["", "dashed", "dotted"]
    assert drawn["levels"][-1]["text"] in ("40 B", "60 B")


times = st.lists(st.lists(st.floats(1e-6, 10), max_size=40), max_size=8)


@given(times, st.none() | times)
def test_strips_hold_their_samples_whatever_they_are(mine, dense):
    drawn = sample_strip(LatencySamples(ttft_s=[], inter_token_s=mine, dense_inter_token_s=dense))
    count = sum(map(len, mine))
    assert (drawn is None) == (count == 0)
    if drawn:
        assert drawn["rows"][0]["count"] == count
        for row in drawn["rows"]:
            assert 0 <= row["low"] <= row["middle"] <= row["high"] <= WIDTH


def test_the_slowest_samples_are_counted_not_drawn():
    raw = LatencySamples(
        ttft_s=[], inter_token_s=[[0.01 + index * 1e-5 for index in range(300)] + [5.0]]
    )
    row = sample_strip(raw)["rows"][0]
    assert row["beyond"] == 1
    assert row["high"] > WIDTH / 2
