from __future__ import annotations

import os
import sys
import time

import pytest

from prunebench.measure.devices.cpu_contention import CpuWatch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Proc:
    """A /proc in a folder: two cores of ours and one that is not, this process and a child."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.now = folder, 100.0
        self.busy, self.steal, self.own, self.child, self.elsewhere = 0, 0, 0, 0, 0
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 3})
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.write()

    def write(self):
        lines = [f"cpu  {self.busy + self.elsewhere} 0 0 9 0 0 0 0 0 0"]
        lines += [
            f"cpu1 {self.elsewhere} 0 0 0 0 0 0 0 0 0",
            f"cpu2 {self.busy} 0 0 7 7 0 0 {self.steal} 0 0",
        ]
        (self.folder / "stat").write_text("\n".join([*lines, "cpu3 0 0 0 9 0 0 0 0 0 0", "intr 5"]))
        for pid, ticks, children in ((os.getpid(), self.own, "77"), (77, self.child, "")):
            thread = self.folder / str(pid) / "task" / str(pid)
            thread.mkdir(parents=True, exist_ok=True)
            (thread / "children").write_text(children)
            (self.folder / str(pid) / "stat").write_text(
                f"{pid} (a) name) S {'0 ' * 10}{ticks} 0 0 0 20 0"
            )

    def passes(self, seconds, **ticks):
        self.now += seconds
        for name, value in ticks.items():
            setattr(self, name, getattr(self, name) + value)
        self.write()


@pytest.fixture
def proc(tmp_path, monkeypatch):
    return Proc(tmp_path, monkeypatch)


def test_the_time_of_neither_us_nor_our_children_is_that_of_others(proc):
    watch = CpuWatch(proc.folder)
    watch.phase("load")
    proc.passes(2.0, busy=2 * TICK, own=2 * TICK)
    watch.phase("latency")
    proc.passes(2.0, busy=3 * TICK, own=TICK, child=TICK, steal=TICK, elsewhere=50 * TICK)
    watch.phase("save")
    proc.passes(0.1, busy=TICK)
    quiet, loud = watch.result()
    assert (quiet.phase, quiet.others_share, quiet.steal_share) == ("load", 0, 0)
    assert (loud.phase, loud.wall_s) == ("latency", pytest.approx(2.0))
    assert loud.others_share == pytest.approx(1 / 4)  # one second of two, on two cores
    assert loud.steal_share == pytest.approx(1 / 4)


def test_phases_of_one_name_are_taken_together(proc):
    watch = CpuWatch(proc.folder)
    for name in ("audit", "prune", "audit"):
        watch.phase(name)
        proc.passes(0.3, busy=TICK // 10)
    (found,) = watch.result()
    assert (found.phase, found.wall_s) == ("audit", pytest.approx(0.6))


def test_without_proc_there_is_a_reason_and_no_figure(tmp_path):
    watch = CpuWatch(tmp_path)
    watch.phase("latency")
    assert watch.result() == []
    assert str(tmp_path) in watch.reason


def test_if_the_kernel_tells_nothing_of_our_cores_there_is_a_reason(proc):
    (proc.folder / "stat").write_text("cpu  5 0 0 9 0 0 0 0 0 0\n")
    watch = CpuWatch(proc.folder)
    watch.phase("latency")
    assert watch.result() == []
    assert "names none" in watch.reason
