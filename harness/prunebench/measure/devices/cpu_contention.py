"""CPU time that other processes took from this one, phase by phase. Needs /proc, so Linux only.

The kernel counts in ticks of about 10 ms, so a phase shorter than half a second gets no figure.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from prunebench.record.devices import CpuLoad

LEAST_S = 0.5
# Columns of a `cpuN` line in /proc/stat; the guest columns are already counted in user.
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq
_STEAL = 7  # the hypervisor gave the core to another machine


class _Reading(NamedTuple):
    time: float
    busy: float
    """Ticks of all processes on the cores that we may use."""
    own: float
    """Ticks of this process, its living descendants and those that it has waited for."""
    steal: float


class CpuWatch:
    """Call `phase` when a phase begins and `result` at the end.

    If there are no figures, ``reason`` says why.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.reason: str | None = None
        self._proc = proc
        self._cores: set[int] = set()
        self._tick = 0.0
        try:
            self._tick = 1 / os.sysconf("SC_CLK_TCK")
            self._cores = set(os.sched_getaffinity(0))
        except (AttributeError, ValueError, OSError):
            self.reason = "this system does not tell which cores a process may use"
        self._marks: list[tuple[str, _Reading]] = []

    def phase(self, name: str) -> None:
        """Count the time from now on to the phase ``name``."""
        reading = self._read()
        if reading is not None:
            self._marks.append((name, reading))

    def stop(self) -> None:
        """Count the time from now on to no phase."""
        self.phase("")

    def result(self) -> list[CpuLoad]:
        """The load during each phase of half a second or more, in order of first appearance.

        A phase that was entered several times gets one figure.
        """
        self.stop()
        spans: dict[str, list[_Reading]] = {}
        for (name, before), (_, after) in zip(self._marks, self._marks[1:], strict=False):
            change = _Reading(*(new - old for new, old in zip(after, before, strict=True)))
            spans.setdefault(name, []).append(change)
        found = []
        for name, parts in spans.items():
            wall, busy, own, steal = (sum(column) for column in zip(*parts, strict=True))
            if name and wall >= LEAST_S:
                whole = wall * len(self._cores) / self._tick  # ticks that all our cores have
                found.append(
                    CpuLoad(
                        phase=name,
                        wall_s=wall,
                        others_share=min(1.0, max(0.0, busy - own) / whole),
                        steal_share=min(1.0, max(0.0, steal / whole)),
                    )
                )
        return found

    def _read(self) -> _Reading | None:
        if self.reason is not None:
            return None
        try:
            own = self._own()
            busy = steal = seen = 0
            for line in (self._proc / "stat").read_text(encoding="ascii").splitlines():
                name, *fields = line.split()
                if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._cores:
                    values = [int(field) for field in fields]
                    busy += sum(values[column] for column in _BUSY)
                    steal += values[_STEAL]
                    seen += 1
        except (OSError, ValueError, IndexError) as error:
            self.reason = f"{self._proc}/stat: {error}"
            return None
        if not seen:
            self.reason = f"{self._proc}/stat names none of the cores that this process may use"
            return None
        return _Reading(time.monotonic(), busy, own, steal)

    def _own(self) -> int:
        """Ticks of this process and its descendants.

        Field 14 to 17 of /proc/PID/stat: user and system time of the process, and of the children
        that it has waited for. The walk therefore counts each process once, living or not.
        """
        root = os.getpid()
        waiting, total = [root], 0
        while waiting:
            pid = waiting.pop()
            try:
                fields = (self._proc / str(pid) / "stat").read_text(
                    encoding="utf-8", errors="replace"
                )
                # A command name may hold blanks and brackets: count fields from its last bracket.
                total += sum(int(field) for field in fields.rpartition(")")[2].split()[11:15])
                for thread in (self._proc / str(pid) / "task").iterdir():
                    waiting.extend(
                        map(int, (thread / "children").read_text(encoding="ascii").split())
                    )
            except OSError:  # a descendant may end while it is read
                if pid == root:
                    raise
        return total
