from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prunebench.measure import memory as module
from prunebench.measure.memory import MemorySampler
from prunebench.measure.timeline import Point

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
        if "prunebench.measure.sampler" in command and str(pid) in command and process.status() != "zombie":
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
        child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        "import time\nfrom prunebench.measure.memory import MemorySampler\n"
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
        command = [sys.executable, "-m", "prunebench.measure.sampler", str(watched.pid), "0.01"]
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
    assert (figures["prune"].nvml_process_bytes, figures["prune"].nvml_device_bytes) == (300, 700)  # a run lasts
    assert (figures["decode"].nvml_process_bytes, figures["decode"].nvml_device_bytes) == (300, 900)
    assert figures["load"].allocated_bytes is None
    assert (memory.gpu.nvml_process_bytes, memory.gpu.nvml_device_bytes) == (300, 900)


def test_the_samplers_process_imports_nothing_heavy():
    code = "import sys, prunebench.measure.sampler; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "psutil", "pynvml"}
