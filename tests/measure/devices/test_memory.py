from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prunebench.measure.devices import memory as module
from prunebench.measure.devices.memory import MemorySampler, without
from prunebench.measure.devices.timeline import Point
from prunebench.record.memory import GpuMemory, Memory, PhaseMemory

MIB = 1 << 20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def wait_for(condition, within_s=10.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def samplers(pid):
    """The sampler processes that watch ``pid``."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if (
            "prunebench.measure.devices.sampler" in command
            and str(pid) in command
            and process.status() != "zombie"
        ):
            found.append(process.pid)
    return found


def started(sampler):
    """Wait for the first sample: what is tested here is not how long Python takes to start."""
    wait_for(lambda: os.fstat(sampler._file.fileno()).st_size > 0)


def peak(memory, phase):
    return next(entry.peak_rss_bytes for entry in memory.phases if entry.phase == phase)


@linux
def test_an_allocation_is_seen_in_its_phase_and_in_no_other():
    with MemorySampler() as sampler:
        started(sampler)
        sampler.phase("before")
        time.sleep(0.05)
        sampler.phase("during")
        block = bytearray(200 * MIB)
        time.sleep(0.05)
        del block
        time.sleep(0.05)
        sampler.phase("after")
        time.sleep(0.05)
        memory, timeline = sampler.result()
    assert [entry.phase for entry in memory.phases] == ["start", "before", "during", "after"]
    grown = peak(memory, "during") - peak(memory, "before")
    assert grown == pytest.approx(200 * MIB, rel=0.02)
    assert peak(memory, "after") < peak(memory, "before") + 20 * MIB
    assert memory.peak_rss_bytes == peak(memory, "during")
    assert memory.baseline_rss_bytes == pytest.approx(peak(memory, "before"), rel=0.05)
    assert memory.uss_bytes < memory.peak_rss_bytes
    assert "own process" in memory.source
    spans = {span.phase: span for span in timeline.phases}
    highest = timeline.time_s[timeline.rss_bytes.index(max(timeline.rss_bytes))]
    assert spans["during"].start_s <= highest <= spans["during"].end_s
    assert spans["before"].end_s == spans["during"].start_s
    assert memory.gpu is None
    assert timeline.gpu_bytes is None


@linux
def test_children_count_as_long_as_they_live(monkeypatch):
    hold = "import sys; block = bytearray(100 << 20); print(flush=True); sys.stdin.read()"
    with MemorySampler() as sampler:
        started(sampler)
        sampler.phase("alone")
        time.sleep(0.05)
        child = subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with child:
            child.stdout.readline()
            sampler.phase("together")
            time.sleep(0.8)  # children are looked for twice a second
        sampler.phase("alone again")
        time.sleep(0.05)
        memory, _ = sampler.result()
    assert peak(memory, "together") - peak(memory, "alone") > 100 * MIB
    assert peak(memory, "alone again") < peak(memory, "alone") + 50 * MIB


@linux
def test_a_quiet_phase_between_written_samples_has_its_peak():
    with MemorySampler() as sampler:
        started(sampler)
        time.sleep(0.1)
        for name in ("one", "two", "one"):
            sampler.phase(name)
            time.sleep(0.06)
        memory, timeline = sampler.result()
    assert [entry.phase for entry in memory.phases] == ["start", "one", "two"]
    assert all(entry.peak_rss_bytes > MIB for entry in memory.phases)
    assert [span.phase for span in timeline.phases] == ["start", "one", "two", "one"]


@linux
def test_samples_come_every_ten_milliseconds_and_cost_little():
    with MemorySampler() as sampler:
        started(sampler)
        pid = sampler._process.pid
        begun = time.monotonic()
        used, switched = cpu_seconds(pid), psutil.Process(pid).num_ctx_switches().voluntary
        time.sleep(1.0)
        took = time.monotonic() - begun
        ticks = psutil.Process(pid).num_ctx_switches().voluntary - switched
        share = (cpu_seconds(pid) - used) / took
    assert 40 * took <= ticks <= 130 * took
    assert share < 0.05  # 0.01 to 0.02 on an idle virtual machine


def cpu_seconds(pid):
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_the_sampler_is_gone_after_the_context_whatever_happens_in_it():
    sampler = MemorySampler()
    with pytest.raises(KeyError), sampler:
        raise KeyError
    assert sampler._process.poll() is not None
    assert sampler.result()[0].phases[0].phase == "start"


@linux
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_sampler_dies_with_its_parent(how):
    code = (
        "import time\nfrom prunebench.measure.devices.memory import MemorySampler\n"
        "with MemorySampler():\n    print(flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        wait_for(lambda: samplers(parent.pid))
        parent.send_signal(how)
        parent.wait()
        wait_for(lambda: not samplers(parent.pid))


@linux
def test_the_sampler_ends_when_the_process_is_gone_although_its_input_is_open():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as watched:
        command = [
            sys.executable,
            "-m",
            "prunebench.measure.devices.sampler",
            str(watched.pid),
            "0.01",
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sampler:
            assert sampler.stdout.readline()
            watched.kill()
            watched.wait()
            assert sampler.wait(10) == 0


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false"])
def test_without_a_sampler_the_kernels_maximum_stands_in_and_says_so(monkeypatch, executable):
    monkeypatch.setattr(module.sys, "executable", executable)
    with MemorySampler() as sampler:
        sampler.phase("load")
        time.sleep(0.05)
        memory, timeline = sampler.result()
    assert "getrusage" in memory.source
    assert "did not run" in memory.source
    assert memory.peak_rss_bytes >= memory.baseline_rss_bytes > MIB
    assert [entry.peak_rss_bytes for entry in memory.phases] == [None, None]
    assert len(timeline.time_s) == 3  # both phases' begins, and the end


@linux
@pytest.mark.parametrize(
    ("how", "words"),
    [(signal.SIGKILL, "exit code -9"), (signal.SIGSTOP, "did not end when it was told to")],
)
def test_a_sampler_that_dies_or_stands_still_is_noticed_and_costs_little(how, words):
    with MemorySampler(interval_s=0.002) as sampler:
        started(sampler)
        sampler.phase("load")
        wait_for(lambda: os.fstat(sampler._file.fileno()).st_size > 1, 3)
        time.sleep(1.1)  # what it has seen is written every second
        sampler._process.send_signal(how)
        time.sleep(1.1)
        sampler.phase("prune")
        time.sleep(0.02)
        began = time.monotonic()
        memory, _ = sampler.result()
        assert time.monotonic() - began < 3
    assert words in memory.problem
    assert "gave nothing after" in memory.problem
    assert peak(memory, "load") > MIB
    assert peak(memory, "prune") is None
    assert memory.peak_rss_bytes >= peak(memory, "load")
    assert memory.phases[-1].uss_bytes > MIB


@linux
def test_the_unique_set_is_read_when_a_phase_ends():
    with MemorySampler(gpu=False) as sampler:
        sampler.phase("before")
        sampler.phase("during")
        block = bytearray(64 * MIB)
        sampler.phase("after")
        del block
        memory, _ = sampler.result()
    unique = {entry.phase: entry.uss_bytes for entry in memory.phases}
    assert unique["during"] - unique["before"] == pytest.approx(64 * MIB, rel=0.1)
    assert unique["after"] < unique["during"]
    assert memory.problem is None


def test_phases_that_measure_are_no_peaks_of_the_models_own():
    def phase(name, rss, gpu):
        figures = GpuMemory(
            nvml_device_bytes=2 * gpu,
            nvml_process_bytes=gpu,
            allocated_bytes=None,
            reserved_bytes=gpu,
        )
        return PhaseMemory(phase=name, peak_rss_bytes=rss, gpu=figures)

    phases = [phase("prune", 5, 50), phase("perplexity", 7, 30), phase("latency", 9, 90)]
    memory = Memory(
        source="", interval_s=1, baseline_rss_bytes=1, peak_rss_bytes=9, uss_bytes=1, phases=phases
    )
    found = without(memory, {"latency"})
    assert found.peak_rss_bytes == 7
    assert (
        found.gpu.nvml_process_bytes,
        found.gpu.nvml_device_bytes,
        found.gpu.reserved_bytes,
    ) == (50, 100, 50)
    assert found.gpu.allocated_bytes is None
    assert found.phases == phases
    phases[0].peak_rss_bytes = None
    assert without(memory, {"latency"}).peak_rss_bytes == 9  # what is left does not tell


def test_gpu_figures_are_taken_to_phases(monkeypatch):
    with MemorySampler(gpu=False) as sampler:
        begun = time.monotonic()
        for name in ("load", "prune", "decode"):
            sampler.phase(name)
            time.sleep(0.02)
        end = time.monotonic()
        rising = [Point(begun - 0.001, 1000, None, 500), Point(begun + 0.005, 1000, 300, 700)]
        falling = [Point(end - 0.0002, 1000, 300, 700), Point(end - 0.0001, 2000, 100, 900)]
        monkeypatch.setattr(module, "parse", lambda _: rising + falling)
        memory, _ = sampler.result()
    figures = {entry.phase: entry.gpu for entry in memory.phases}
    assert (figures["load"].nvml_process_bytes, figures["load"].nvml_device_bytes) == (300, 700)
    assert (figures["prune"].nvml_process_bytes, figures["prune"].nvml_device_bytes) == (
        300,
        700,
    )  # a run lasts
    assert (figures["decode"].nvml_process_bytes, figures["decode"].nvml_device_bytes) == (300, 900)
    assert figures["load"].allocated_bytes is None
    assert (memory.gpu.nvml_process_bytes, memory.gpu.nvml_device_bytes) == (300, 900)


def test_a_level_stretch_lasts_until_the_end_although_its_last_sample_came_later(monkeypatch):
    with MemorySampler(gpu=False) as sampler:
        begun = time.monotonic()
        sampler.phase("prune")
        time.sleep(0.05)
        points = [Point(begun, 1000), Point(begun + 0.01, 2000), Point(begun + 100, 2000)]
        monkeypatch.setattr(module, "parse", lambda _: points)
        _, timeline = sampler.result()
    assert timeline.time_s[-1] == pytest.approx(timeline.phases[-1].end_s, abs=1e-3)
    assert timeline.rss_bytes[-2:] == [2000, 2000]


def test_the_samplers_process_imports_nothing_heavy():
    code = "import sys, prunebench.measure.devices.sampler; print(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "psutil", "pynvml"}
