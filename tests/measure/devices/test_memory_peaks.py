"""Peaks by phase and the timeline, from recorded samples without a clock or a process."""

from __future__ import annotations

import pytest

from prunebench.measure.devices.memory_peaks import (
    Phase,
    Recording,
    memory,
    timeline,
    without_phases,
)
from prunebench.measure.devices.timeline import Point
from prunebench.record.memory import GpuMemory, Memory, PhaseMemory

MIB = 1 << 20


def recorded(phases, end, points, **more):
    """A recording: ``phases`` are (name, start) or `Phase`, ``points`` as for `Point`; RSS 100."""
    made = [one if isinstance(one, Phase) else Phase(*one, 100) for one in phases]
    facts = {"interval_s": 0.01, "source": "recorded", **more}
    return Recording(made, Phase("", end, 100), [Point(*one) for one in points], **facts)


def peaks(recording, name="peak_rss_bytes"):
    return {entry.phase: getattr(entry, name) for entry in memory(recording, None).phases}


def test_an_allocation_counts_in_its_phase_and_in_no_other():
    phases = [("start", 0), ("before", 1), ("during", 2), ("after", 3)]
    points = [(0.5, 90), (1.5, 100), (2.1, 100), (2.2, 300), (2.7, 300), (2.8, 100), (3.9, 100)]
    recording = recorded(phases, 4, points)
    assert peaks(recording) == {"start": 100, "before": 100, "during": 300, "after": 100}
    found, line = memory(recording, None), timeline(recording)
    assert (found.peak_rss_bytes, found.baseline_rss_bytes, found.problem) == (300, 100, None)
    assert line.time_s[line.rss_bytes.index(300)] == 2.2
    assert [(span.phase, span.start_s, span.end_s) for span in line.phases][1:3] == [
        ("before", 1, 2),
        ("during", 2, 3),
    ]
    assert (found.gpu, line.gpu_bytes) == (None, None)


def test_phases_of_one_name_are_one_phase_but_two_spans():
    phases = [("start", 0), ("one", 1), ("two", 2), ("one", 3)]
    recording = recorded(phases, 4, [(1.5, 500), (2.5, 200), (3.5, 400), (4, 100)])
    assert peaks(recording) == {"start": 100, "one": 500, "two": 200}
    assert [span.phase for span in timeline(recording).phases] == ["start", "one", "two", "one"]


def test_a_quiet_phase_between_two_written_samples_has_their_level():
    recording = recorded([("start", 0), ("quiet", 1), ("end", 2)], 3, [(0.5, 700), (2.9, 700)])
    assert peaks(recording) == {"start": 700, "quiet": 700, "end": 700}


def test_a_level_lasts_until_the_end_although_its_last_sample_came_later():
    line = timeline(recorded([("start", 0), ("prune", 1)], 2, [(0, 10), (0.5, 20), (100, 20)]))
    assert (line.time_s[-1], line.phases[-1].end_s) == (2, 2)
    assert line.rss_bytes[-2:] == [20, 20]


def test_gpu_figures_belong_to_the_phase_in_which_they_were_read():
    points = [(0.9, 10, None, 500), (1.1, 10, 300, 700), (3.8, 10, 300, 700), (3.9, 20, 100, 900)]
    recording = recorded([("start", 0), ("load", 1), ("prune", 2), ("decode", 3)], 4, points)
    gpu = peaks(recording, "gpu")
    assert (gpu["load"].nvml_process_bytes, gpu["load"].nvml_device_bytes) == (300, 700)
    assert (gpu["prune"].nvml_process_bytes, gpu["prune"].nvml_device_bytes) == (300, 700)
    assert (gpu["decode"].nvml_process_bytes, gpu["decode"].nvml_device_bytes) == (300, 900)
    assert gpu["load"].allocated_bytes is None
    whole = memory(recording, None).gpu
    assert (whole.nvml_process_bytes, whole.nvml_device_bytes) == (300, 900)


def test_allocator_and_unique_set_are_those_of_the_end_of_a_phase():
    phases = [
        Phase("load", 0, 100, allocator=(5, 6), uss=50),
        Phase("prune", 1, 100, allocator=(9, 8), uss=70),
        Phase("load", 2, 100, allocator=(7, 4), uss=40),
    ]
    recording = recorded(phases, 3, [(0, 100), (3, 100)])
    gpu = peaks(recording, "gpu")
    assert (gpu["load"].allocated_bytes, gpu["load"].reserved_bytes) == (7, 6)
    assert peaks(recording, "uss_bytes") == {"load": 50, "prune": 70}
    assert memory(recording, None).uss_bytes == 40


def test_without_samples_the_kernels_maximum_is_used():
    recording = recorded([("start", 0), ("load", 1)], 2, [], failure="no such file")
    found = memory(recording, 12 * MIB)
    assert found.peak_rss_bytes == 12 * MIB
    assert [entry.peak_rss_bytes for entry in found.phases] == [None, None]
    assert timeline(recording).time_s == [0, 1, 2]  # what the process read itself


@pytest.mark.parametrize(
    ("end", "failure", "problem"),
    [
        (3.0, "it ended with exit code -9", "nothing after 2.0 s: it ended with exit code -9"),
        (9.0, None, "nothing after 2.0 s: it stood still"),
        (2.9, None, None),
    ],
)
def test_a_sampler_that_fails_early_is_named(end, failure, problem):
    phases = [("start", 0), ("load", 1), ("prune", end - 0.5)]
    recording = recorded(phases, end, [(0.1, 300), (2.0, 300)], failure=failure)
    found = memory(recording, 555)
    if problem is None:
        assert found.problem is None
        assert found.peak_rss_bytes == 300
    else:
        assert problem in found.problem
        assert found.peak_rss_bytes == 555  # the kernel saw the time after it, too
    assert peaks(recording)["load"] == 300


def test_after_the_sampler_failed_a_phase_has_no_peak():
    recording = recorded([("start", 0), ("load", 1), ("prune", 8)], 9, [(0.1, 300), (2.0, 300)])
    assert peaks(recording)["prune"] is None


def test_problems_of_the_gpu_are_passed_on():
    recording = recorded([("start", 0)], 1, [(0.5, 1), (1, 1)], problems=["NVML hangs", "GPU lost"])
    assert memory(recording, None).problem == "NVML hangs; GPU lost"


def test_the_peaks_of_some_phases_can_be_left_out():
    def phase(name, rss, gpu):
        figures = GpuMemory(
            nvml_device_bytes=2 * gpu,
            nvml_process_bytes=gpu,
            allocated_bytes=None,
            reserved_bytes=gpu,
        )
        return PhaseMemory(phase=name, peak_rss_bytes=rss, uss_bytes=None, gpu=figures)

    phases = [phase("prune", 5, 50), phase("perplexity", 7, 30), phase("latency", 9, 90)]
    whole = Memory(
        source="", interval_s=1, baseline_rss_bytes=1, peak_rss_bytes=9, uss_bytes=1, phases=phases
    )
    found = without_phases(whole, {"latency"})
    assert found.peak_rss_bytes == 7
    gpu = found.gpu
    assert (gpu.nvml_process_bytes, gpu.nvml_device_bytes, gpu.reserved_bytes) == (50, 100, 50)
    assert gpu.allocated_bytes is None
    assert found.phases == phases
    phases[0].peak_rss_bytes = None
    assert without_phases(whole, {"latency"}).peak_rss_bytes == 9  # one of the rest is not known
