"""The sampling context, with a clock of the test and a script in the place of the sampler."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prunebench.measure.devices import memory as module
from prunebench.measure.devices.memory import MemorySampler

GIVES = """\
#!/bin/sh
cat {samples}
cat > {told}
"""


@pytest.fixture
def clock(monkeypatch):
    """Starts at 10 s; the process holds 100 bytes, of which 60 are its own."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(module, "rss_bytes", lambda: 100)
    monkeypatch.setattr(module, "uss_bytes", lambda: 60)
    monkeypatch.setattr(module, "max_rss_bytes", lambda: 999)
    monkeypatch.setattr(module, "allocator_peaks", lambda: None)
    return clock


@pytest.fixture
def sampler_is(monkeypatch, tmp_path):
    """Put a shell script in the place of the sampler's process."""

    def put(script, samples=()):
        (tmp_path / "samples").write_text("".join(f"{line}\n" for line in samples))
        path = tmp_path / "sampler"
        path.write_text(script.format(samples=tmp_path / "samples", told=tmp_path / "told"))
        path.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(path))
        monkeypatch.setattr(module, "_STOP_WITHIN_S", 100.0)
        return tmp_path / "told"

    return put


def run(clock, *phases, **more):
    with MemorySampler(**more) as sampler:
        for name in phases:
            clock.now += 1
            sampler.phase(name)
        clock.now += 1
        memory, timeline = sampler.result()
    return memory, timeline, sampler


def test_samples_are_assigned_to_the_phases_that_were_named(clock, sampler_is):
    sampler_is(GIVES, ["10.5 110 - -", "11.5 300 - -", "12.5 120 - -", "13.0 120 - -"])
    memory, timeline, _ = run(clock, "load", "prune", gpu=False)
    assert {entry.phase: entry.peak_rss_bytes for entry in memory.phases} == {
        "start": 110,
        "load": 300,
        "prune": 120,
    }
    assert (memory.peak_rss_bytes, memory.baseline_rss_bytes, memory.uss_bytes) == (300, 100, 60)
    assert memory.source == "own process, /proc/PID/statm with children, every 10 ms"
    assert (memory.problem, memory.gpu) == (None, None)
    assert timeline.time_s == [0, 0.5, 1.5, 2.5, 3.0]
    assert [span.phase for span in timeline.phases] == ["start", "load", "prune"]


def test_figures_of_the_gpu_are_in_the_result(clock, sampler_is):
    lines = ["first 10.1 500 0.20", "pids 10.1 1 1", "10.2 100 40 500", "pids 11.5 1 1 4242:7"]
    lines += ["pcie 11.6 10 30", "link 4 16 5 16", "11.7 100 40 507", "12.9 100 40 507"]
    lines += ["problem GPU is lost"]
    told = sampler_is(GIVES, lines)
    memory, timeline, sampler = run(clock, "load", "prune")
    assert (memory.gpu.nvml_process_bytes, memory.gpu.nvml_device_bytes) == (40, 507)
    assert set(timeline.gpu_bytes) == {40}
    assert memory.problem == "GPU is lost"
    shared = sampler.sharing()
    assert (shared.foreign, shared.pids, shared.phases) == (True, [4242], ["load", "prune"])
    assert sampler.pcie().rx_peak_bytes_per_s == 30
    assert told.read_text() == "+-"  # transfers are sampled while the model is loaded


def test_without_a_gpu_there_is_no_sharing(clock, sampler_is):
    sampler_is(GIVES, ["10.5 100 - -"])
    _, _, sampler = run(clock, "load", gpu=False)
    assert (sampler.sharing(), sampler.pcie()) == (None, None)


def test_the_sampler_ends_with_the_context_even_after_an_error(clock, sampler_is):
    sampler_is(GIVES, ["10.5 100 - -"])
    sampler = MemorySampler()
    with pytest.raises(KeyError), sampler:
        raise KeyError
    assert sampler._process.poll() == 0
    assert sampler.result()[0].phases[0].phase == "start"


def test_without_a_sampler_the_kernels_maximum_is_used_and_the_source_says_so(
    clock, sampler_is, monkeypatch
):
    sampler_is("#!/bin/sh\nexit 3\n")
    memory, timeline, _ = run(clock, "load")
    assert memory.source.startswith("getrusage ru_maxrss; the sampler did not run: it ended with")
    assert memory.peak_rss_bytes == 999
    assert [entry.peak_rss_bytes for entry in memory.phases] == [None, None]
    assert len(timeline.time_s) == 3  # the beginnings of both phases, and the end
    monkeypatch.setattr(module.sys, "executable", "/nowhere/python")
    memory, _, _ = run(clock, "load")
    assert "the sampler did not run: [Errno 2]" in memory.source


@pytest.mark.parametrize(
    ("script", "within_s", "words"),
    [
        ("#!/bin/sh\ncat {samples}\nkill -9 $$\n", 100.0, "it ended with exit code -9"),
        ("#!/bin/sh\ncat {samples}\nexec sleep 1000\n", 0.1, "it did not end when it was told to"),
    ],
)
def test_if_the_sampler_dies_or_hangs_the_result_says_so_and_keeps_its_samples(
    clock, sampler_is, monkeypatch, script, within_s, words
):
    sampler_is(script, ["10.5 110 - -", "11.2 300 - -"])
    monkeypatch.setattr(module, "_STOP_WITHIN_S", within_s)
    with MemorySampler() as sampler:
        clock.now = 11.0
        sampler.phase("load")
        while not module.os.fstat(sampler._file.fileno()).st_size:
            assert sampler._process.poll() in (None, -9)
        clock.now = 20.0
        sampler.phase("prune")
        clock.now = 21.0
        memory, _ = sampler.result()
    sampler._process.wait()
    assert memory.problem == f"the sampler gave nothing after 1.2 s: {words}"
    assert {entry.phase: entry.peak_rss_bytes for entry in memory.phases} == {
        "start": 110,
        "load": 300,
        "prune": None,
    }
    assert memory.peak_rss_bytes == 999  # the kernel's own maximum covers the time after it
