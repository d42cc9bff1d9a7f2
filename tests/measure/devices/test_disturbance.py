"""The kernel's counters are recorded ones, in files laid out as /proc has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunebench.measure.devices import disturbance
from prunebench.measure.devices.disturbance import (
    CpuWatch,
    DisturbedError,
    Reading,
    Watches,
    cause,
)
from prunebench.measure.devices.disturbance import (
    undisturbed as undisturbed_value,
)

TICK = 1 / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def undisturbed():
    """The real answers."""


class Kernel:
    """What the kernel says, to be changed between two readings."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.waits = {"101": 0, "102": 0}
        self.busy = self.stolen = 0
        self.write()

    def write(self) -> None:
        for thread, wait in self.waits.items():
            file = self.proc / "self" / "task" / thread / "schedstat"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"5000000 {wait} 17\n")
        core = min(os.sched_getaffinity(0))
        line = f"{self.busy} 0 0 900 0 0 0 {self.stolen} 0 0"
        (self.proc / "stat").write_text(f"cpu  1 2 3\ncpu{core} {line}\nintr 5 6\ncpu999 {line}\n")


@pytest.fixture
def clock(monkeypatch):
    """The time of a reading and the CPU time of this process, seconds, set by the test."""
    now = {"wall": 10.0, "own": 1.0}
    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(disturbance.time, "process_time", lambda: now["own"])
    return now


@pytest.fixture
def kernel(tmp_path, clock):
    return Kernel(tmp_path)


def told(kernel: Kernel, clock: dict[str, float], *, wall: float, own: float, **changes: int):
    """What disturbed a span of ``wall`` seconds; ``own`` seconds of it were our CPU time."""
    watch = CpuWatch(kernel.proc)
    before = watch.read()
    clock["wall"] += wall
    clock["own"] += own
    for name, change in changes.items():
        if name in kernel.waits:
            kernel.waits[name] += change
        else:
            setattr(kernel, name, change)
    kernel.write()
    return watch.disturbed(before, watch.read())


def test_a_quiet_round_is_clean(kernel, clock):
    assert told(kernel, clock, wall=1, own=0.9, busy=round(0.92 / TICK)) is None


def test_waiting_for_a_core_disturbs_whichever_thread_waits(kernel, clock):
    reason = told(kernel, clock, wall=1, own=0.9, **{"102": 80_000_000})
    assert reason == "its threads waited for a core (8 % of the time)"


def test_the_waits_of_all_threads_count_together(kernel, clock):
    assert told(kernel, clock, wall=1, own=0.9, **{"101": 40_000_000}) is None
    reason = told(kernel, clock, wall=1, own=0.9, **{"101": 40_000_000, "102": 40_000_000})
    assert reason == "its threads waited for a core (8 % of the time)"


def test_other_processes_on_our_cores_disturb_even_if_nobody_waits(kernel, clock):
    reason = told(kernel, clock, wall=2, own=2, busy=round(3 / TICK))
    assert reason == "other processes used the cores (50 % of one)"


def test_time_that_the_hypervisor_took_disturbs(kernel, clock):
    reason = told(kernel, clock, wall=1, own=0.9, busy=round(0.9 / TICK), stolen=round(0.1 / TICK))
    assert reason == "the hypervisor took a core (10 % of the time)"


def test_a_tick_more_or_less_says_nothing_of_a_short_round(kernel, clock):
    assert told(kernel, clock, wall=2 * TICK, own=TICK, busy=3) is None


def test_cores_that_we_may_not_use_do_not_matter(kernel, clock):
    watch = CpuWatch(kernel.proc)
    before = watch.read()
    clock["wall"] += 1
    text = (kernel.proc / "stat").read_text().replace("cpu999 0", "cpu999 5000")
    (kernel.proc / "stat").write_text(text)
    assert watch.disturbed(before, watch.read()) is None


def test_a_thread_that_ends_or_begins_between_two_readings_is_no_error(kernel, clock):
    watch = CpuWatch(kernel.proc)
    before = watch.read()
    clock["wall"] += 1
    (kernel.proc / "self" / "task" / "102" / "schedstat").unlink()
    (kernel.proc / "self" / "task" / "102").rmdir()
    del kernel.waits["102"]
    kernel.waits["103"] = 0
    kernel.write()
    assert watch.disturbed(before, watch.read()) is None


def test_without_counters_it_is_blind_and_says_why(tmp_path):
    watch = CpuWatch(tmp_path)
    assert "does not say how long a thread waits" in watch.blind
    assert watch.read() is None
    assert watch.disturbed(None, None) is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no schedstat here")
def test_this_systems_own_counters_are_read():
    watch = CpuWatch()
    assert watch.blind is None
    first, second = watch.read(), watch.read()
    assert isinstance(first, Reading)
    assert second.time_s > first.time_s
    assert second.waited_s >= first.waited_s >= 0
    assert second.busy_s >= first.busy_s > 0


class Told:
    """A watch that answers as it is told."""

    blind = None

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def read(self):
        return None

    def disturbed(self, before, after):
        return self.answers.pop(0)


def test_a_value_is_measured_again_until_nothing_disturbs_it():
    values = iter([1, 2, 3])
    assert undisturbed_value(lambda: next(values), Told("noise", None, "noise")) == 2


def test_a_value_that_is_always_disturbed_is_none_with_a_reason():
    with pytest.raises(DisturbedError, match="each of 3 tries: noise"):
        undisturbed_value(lambda: 1, Told("noise", "noise", "noise"))


def test_several_watches_are_one():
    both = Watches(Told(None, "the CPU", None), Told(None, "the GPU"))
    assert [both.disturbed([0, 0], [0, 0]) for _ in range(3)] == [None, "the CPU", "the GPU"]
    assert both.blind is None


def test_a_cause_is_the_reason_without_its_figure():
    assert cause("other processes used the cores (50 % of one)") == "other processes used the cores"
