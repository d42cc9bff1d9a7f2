"""Memory over time as a plot."""

from __future__ import annotations

import re

import pytest

import svg_paths
from prunebench.record.memory import PhaseSpan, Timeline
from prunebench_report.figures.timeline import drawable, ends_of, phase_colours, timeline


def draw(line):
    return timeline("Memory", line, ends_of([line]), phase_colours([line])).svg


def test_the_timeline_keeps_its_peak_and_stays_small():
    times = [index / 100 for index in range(600)]
    values = [10**9] * 600
    values[301] = 3 * 10**9
    spans = [
        PhaseSpan(phase="load", start_s=0, end_s=1),
        PhaseSpan(phase="prune", start_s=1, end_s=6),
    ]
    svg = draw(Timeline(time_s=times, rss_bytes=values, phases=spans))
    path = re.search(r'class="memory" d="([^"]+)"', svg)[1]
    heights = [y for _, y in svg_paths.corners(path)]
    assert len(heights) < 10
    assert min(heights) == pytest.approx(120 * 0.04 / 1.04, abs=1)
    assert re.findall(r"<title>(\w+): ", svg) == ["load", "prune"]


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
    assert not drawable(line)


def test_a_timeline_of_nothing_but_zeros_is_drawn():
    assert 'class="memory"' in draw(Timeline(time_s=[0.0, 0.0], rss_bytes=[0, 0], phases=[]))


def test_the_gpu_has_a_line_of_its_own():
    line = Timeline(time_s=[0.0, 1.0], rss_bytes=[5, 6], gpu_bytes=[1, 2], phases=[])
    kinds = re.compile(r'<path class="(memory[^"]*)"')
    assert kinds.findall(draw(line)) == ["memory", "memory dashed"]
    more = line.model_copy(update={"gpu_device_bytes": [3, 40]})
    assert kinds.findall(draw(more)) == ["memory", "memory dashed", "memory dotted"]


def test_more_phases_than_colours_still_differ():
    spans = [PhaseSpan(phase=f"p{n}", start_s=n, end_s=n + 1) for n in range(10)]
    svg = draw(Timeline(time_s=[0.0, 10.0], rss_bytes=[1, 2], phases=spans))
    assert len(set(re.findall(r'class="phase ([^"]+)"', svg))) == 10
