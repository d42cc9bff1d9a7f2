"""The sampler's parts on recorded readings and a clock of the test; its process starts and ends."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from prunebench.measure.devices import sampler as module
from prunebench.measure.devices.sampler import LinuxProcesses, SampleWriter, Ticks, sample

MIB = 1 << 20
WITHIN_S = 100
"""Generous, because a machine may be busy: a test that hangs is ended by it, none depends on it."""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and poll")
pytestmark = linux
COMMAND = [sys.executable, "-P", "-m", "prunebench.measure.devices.sampler"]


class Script:
    """Ticks, processes and GPU as a test tells them: rows (time, rss, gpu)."""

    def __init__(self, *rows, transfers=()):
        self.rows = list(rows)
        self.transfers = False
        self.asked = []
        self._on = set(transfers)
        self._row = None

    def __iter__(self):
        for row in self.rows:
            self._row = row
            self.transfers = row[0] in self._on
            yield row[0]

    def rss(self, now):
        assert now == self._row[0]
        return self._row[1]

    def latest(self, now):
        self.asked.append((now, self.transfers))
        return self._row[2] if len(self._row) > 2 else (None, None)

    def notes(self):
        return []


def lines_of(script, *, gpu=False):
    out = io.StringIO()
    sample(script, script, SampleWriter(out), script if gpu else None)
    return out.getvalue().splitlines()


def test_of_a_run_of_equal_samples_the_first_and_the_last_are_written():
    script = Script((1.0, 5), (1.01, 5), (1.02, 5), (1.03, 7), (1.04, 5), (1.05, 5))
    assert lines_of(script) == [
        "1.0000 5 - -",
        "1.0200 5 - -",
        "1.0300 7 - -",
        "1.0400 5 - -",
        "1.0500 5 - -",
    ]


def test_the_gpu_is_in_the_same_line_and_knows_when_to_sample_transfers():
    script = Script((1.0, 5, (3, 9)), (1.01, 5, (None, 9)), transfers={1.01})
    assert lines_of(script, gpu=True) == ["1.0000 5 3 9", "1.0100 5 - 9"]
    assert script.asked == [(1.0, False), (1.01, True)]


def test_sampling_ends_when_the_process_is_gone():
    assert lines_of(Script((1.0, 5), (1.01, None), (1.02, 5))) == ["1.0000 5 - -"]


def test_lines_are_flushed_once_a_second_and_notes_at_once():
    class Counted(io.StringIO):
        flushes = 0

        def flush(self):
            self.flushes += 1

    out = Counted()
    writer = SampleWriter(out)
    for tick in range(300):  # three seconds
        writer.add(tick / 100, (tick, None, None))
    assert out.flushes == 3
    writer.notes(["pids 3.0 1 1"])
    writer.add(3.0, (1, None, None))
    assert out.flushes == 4


class Clock:
    """A clock that moves only while somebody waits for it, and a pipe that is told at moments."""

    def __init__(self, monkeypatch, told):
        self.now, self.told = 100.0, dict(told)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        poller = SimpleNamespace(register=lambda *_: None, poll=self.poll)
        monkeypatch.setattr(
            module,
            "select",
            SimpleNamespace(poll=lambda: poller, POLLIN=select.POLLIN, POLLHUP=select.POLLHUP),
        )
        monkeypatch.setattr(module.os, "read", lambda *_: self.said)

    def poll(self, milliseconds):
        self.now += milliseconds / 1000
        for moment in sorted(self.told):
            if moment <= round(self.now, 6):
                self.said = self.told.pop(moment)
                return [(0, select.POLLIN)]
        return []


def test_ticks_are_on_a_grid_that_a_late_tick_does_not_move(monkeypatch):
    clock = Clock(monkeypatch, {100.1: b""})
    found = []
    for now in Ticks(0, 0.01):
        found.append(round(now - 100, 6))
        if len(found) == 3:
            clock.now += 0.025  # the third look takes long: two ticks are missed
        elif len(found) == 5:
            clock.now += 0.004
    assert found == [0, 0.01, 0.02, 0.05, 0.06, 0.07, 0.08, 0.09]


def test_ticks_pass_on_when_transfers_are_to_be_sampled(monkeypatch):
    Clock(monkeypatch, {100.02: b"+", 100.04: b"-+-", 100.06: b""})
    ticks = Ticks(0, 0.01)
    assert [ticks.transfers for _ in ticks] == [False, False, True, True, False, False]


def test_children_count_as_long_as_they_live():
    hold = "import sys; block = bytearray(b'x') * (100 << 20); print(flush=True); sys.stdin.read()"
    processes = LinuxProcesses(os.getpid())
    alone = processes.rss(0.0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as child:
        child.stdout.readline()
        assert processes.rss(0.4) < alone + 50 * MIB  # children are looked for twice a second
        assert processes.rss(0.6) > alone + 100 * MIB
    assert processes.rss(0.7) < alone + 50 * MIB


def started(pid, *more):
    command = [*COMMAND, str(pid), "0.01", *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_it_ends_when_its_input_is_closed():
    with started(os.getpid()) as sampler:
        assert sampler.stdout.readline()
        sampler.stdin.close()
        assert sampler.wait(WITHIN_S) == 0


def test_it_ends_when_the_process_is_gone_although_its_input_is_open():
    waits = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(waits, stdin=subprocess.PIPE) as watched,
        started(watched.pid) as sampler,
    ):
        assert sampler.stdout.readline()
        watched.kill()
        watched.wait()
        assert sampler.wait(WITHIN_S) == 0


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_it_dies_with_its_parent(how):
    code = (
        "import sys\nfrom prunebench.measure.devices.memory import MemorySampler\n"
        "with MemorySampler(gpu=False) as sampler:\n"
        "    print(sampler._process.pid, flush=True)\n    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        sampler = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(how)
        parent.wait()
        sampler.wait(WITHIN_S)


def test_it_imports_nothing_heavy():
    code = "import sys, prunebench.measure.devices.sampler; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pydantic", "psutil", "pynvml"}
    assert not set(told.stdout.split()) & heavy
