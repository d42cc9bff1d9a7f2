"""The graphics of a card as geometry: the heat map, the timeline, the strips."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.record.memory import PhaseSpan, Timeline
from prunebench.record.speed import LatencySamples
from prunebench_report.figures import sparklines as strips
from prunebench_report.figures.heatmap import heatmap


def test_the_heat_map_covers_each_remaining_layer_once(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.25)))
    removed = {one["x"] for one in drawn["removed"]}
    assert len(removed) == 8
    assert len(drawn["rows"]) == 7
    for row in drawn["rows"]:
        covered = [
            layer for one in row["rects"] for layer in range(one["x"], one["x"] + one["width"])
        ]
        assert sorted(covered) == sorted(set(range(30)) - removed)


def test_equal_neighbours_become_one_rect_and_others_stay_apart(build):
    even = heatmap(build.audit(build.cell("wanda", sparsity=0.5)))
    assert [len(row["rects"]) for row in even["rows"]] == [1] * 7
    assert even["rows"][0]["rects"][0]["title"] == "layers 0 to 29, self_attn.q_proj: 50.0 %"
    uneven = heatmap(build.audit(build.cell("magnitude", sparsity=0.5)))
    assert min(len(row["rects"]) for row in uneven["rows"]) > 10


def test_the_heat_map_says_in_words_what_it_shows(build):
    drawn = heatmap(build.audit(build.cell("shortgpt", ratio=0.1)))
    assert "27 of 30 layers" in drawn["desc"]
    assert "Removed layers: 25, 26, 27." in drawn["desc"]


def test_a_model_without_prunable_linears_has_no_heat_map(build):
    audit = build.audit(build.cell("dense"))
    audit.linears = []
    assert heatmap(audit) is None


def test_the_timeline_keeps_its_peak_and_stays_small():
    times = [index / 100 for index in range(600)]
    values = [10**9] * 600
    values[301] = 3 * 10**9
    spans = [
        PhaseSpan(phase="load", start_s=0, end_s=1),
        PhaseSpan(phase="prune", start_s=1, end_s=6),
    ]
    drawn = strips.timeline(Timeline(time_s=times, rss_bytes=values, phases=spans))
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
    assert strips.timeline(line) is None


def test_a_timeline_of_nothing_but_zeros_is_drawn():
    assert strips.timeline(Timeline(time_s=[0.0, 0.0], rss_bytes=[0, 0], phases=[]))["levels"]


def test_the_gpu_has_a_line_of_its_own():
    line = Timeline(time_s=[0.0, 1.0], rss_bytes=[5, 6], gpu_bytes=[1, 2], phases=[])
    assert [one["style"] for one in strips.timeline(line)["lines"]] == ["", "dashed"]
    drawn = strips.timeline(line.model_copy(update={"gpu_device_bytes": [3, 40]}))
    assert [one["style"] for one in drawn["lines"]] == ["", "dashed", "dotted"]
    assert drawn["levels"][-1]["text"] in ("40 B", "60 B")


times = st.lists(st.lists(st.floats(1e-6, 10), max_size=40), max_size=8)


@given(times, st.none() | times)
def test_strips_hold_their_samples_whatever_they_are(mine, dense):
    drawn = strips.samples(LatencySamples(ttft_s=[], inter_token_s=mine, dense_inter_token_s=dense))
    count = sum(map(len, mine))
    assert (drawn is None) == (count == 0)
    if drawn:
        assert drawn["rows"][0]["count"] == count
        for row in drawn["rows"]:
            assert 0 <= row["low"] <= row["middle"] <= row["high"] <= strips.WIDTH


def test_the_slowest_samples_are_counted_not_drawn():
    raw = LatencySamples(
        ttft_s=[], inter_token_s=[[0.01 + index * 1e-5 for index in range(300)] + [5.0]]
    )
    row = strips.samples(raw)["rows"][0]
    assert row["beyond"] == 1
    assert row["high"] > strips.WIDTH / 2


@given(st.floats(1e-9, 1e15))
def test_nice_steps_are_near_and_not_below(value):
    step = strips.nice(value)
    assert value * (1 - 1e-8) <= step <= 5 * value
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(lead) in (1, 2, 5, 10)
