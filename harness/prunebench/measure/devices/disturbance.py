"""Whether something else used the machine while a sample was timed.

A figure that a busy machine made up is worse than none, so every timed round is enclosed by two
readings of what the kernel knows: how long our threads waited for a core, how much of our cores
other processes used, and how much the hypervisor took from this virtual machine.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

WAITED = 0.05
"""Disturbed if our threads waited longer than this share of the round for a core."""
OTHERS = 0.15
"""Disturbed if other processes ran on our cores for longer than this share of the round."""
STOLEN = 0.05
"""Disturbed if the hypervisor took more than this share of the round from our cores."""
COARSE_TICKS = 3
"""/proc/stat counts in ticks of 10 ms a core: fewer ticks than this say nothing."""

_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq; guest time is part of user
_STEAL = 7


class Watch(Protocol):
    """Tells whether the time between two readings was disturbed."""

    @property
    def blind(self) -> str | None:
        """Why nothing can be told here; None if it can."""

    def read(self) -> object:
        """A reading, to be taken directly before and after what is timed."""

    def disturbed(self, before: object, after: object) -> str | None:
        """What disturbed the time between two readings, in words; None if nothing did."""


class Reading(NamedTuple):
    """What the kernel had counted at one moment, in seconds."""

    time_s: float
    waited_s: float
    """All threads of this process together: runnable, but no core was free."""
    busy_s: float
    """All processes on the cores that we may use."""
    own_s: float
    """CPU time of this process."""
    stolen_s: float
    """Taken by the hypervisor from the cores that we may use."""


class CpuWatch:
    """Disturbance of the CPU, by `/proc/self/task/*/schedstat` and `/proc/stat`. Linux only.

    The files stay open between readings, since opening them costs more than reading them: a reading
    takes some 20 microseconds, below 0.1 % of a round of 40 ms with its two readings.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.blind: str | None = None
        self._tasks = proc / "self" / "task"
        self._threads: dict[str, int] = {}
        self._stat = -1
        try:
            self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
            self._cores = {f"cpu{core}".encode() for core in os.sched_getaffinity(0)}
            self._stat = os.open(proc / "stat", os.O_RDONLY)
            self._waited()
        except (AttributeError, ValueError, IndexError, OSError) as error:
            self.blind = f"this system does not say how long a thread waits for a core ({error})"

    def read(self) -> Reading | None:
        """None if nothing can be told."""
        if self.blind is not None:
            return None
        try:
            busy, stolen = self._busy()
            return Reading(time.perf_counter(), self._waited(), busy, _own_s(), stolen)
        except (ValueError, IndexError, OSError) as error:
            self.blind = f"the kernel's counters could not be read: {error}"
            return None

    def disturbed(self, before: Reading | None, after: Reading | None) -> str | None:
        if before is None or after is None:
            return None
        passed = Reading(*(new - old for old, new in zip(before, after, strict=True)))
        wall = passed.time_s
        if wall <= 0:
            return None
        coarse = COARSE_TICKS * self._tick_s
        others = passed.busy_s - passed.own_s
        if passed.waited_s > WAITED * wall:
            return f"its threads waited {passed.waited_s / wall:.0%} of the time for a core"
        if passed.stolen_s > max(coarse, STOLEN * wall):
            return f"the hypervisor took {passed.stolen_s / wall:.0%} of a core"
        if others > max(coarse, OTHERS * wall):
            return f"other processes used {others / wall:.0%} of a core"
        return None

    def close(self) -> None:
        for file in (*self._threads.values(), self._stat):
            with suppress(OSError):
                os.close(file)
        self._threads, self._stat = {}, -1

    def __del__(self) -> None:
        self.close()

    def _waited(self) -> float:
        """Seconds that all threads waited: the second number of schedstat, in nanoseconds."""
        present = os.listdir(self._tasks)  # noqa: PTH208 - half the time of iterdir
        for gone in self._threads.keys() - set(present):
            os.close(self._threads.pop(gone))
        total = 0
        for thread in present:
            try:
                file = self._threads.get(thread)
                if file is None:
                    file = os.open(self._tasks / thread / "schedstat", os.O_RDONLY)
                    self._threads[thread] = file
                total += int(os.pread(file, 100, 0).split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended since the listing
                continue
        if not self._threads:
            raise OSError("no thread has a schedstat")
        return total / 1e9

    def _busy(self) -> tuple[float, float]:
        """Seconds of all processes on our cores, and seconds that the hypervisor took from them."""
        busy = steal = 0
        for line in os.pread(self._stat, 1 << 16, 0).splitlines():
            name, *fields = line.split()
            if not name.startswith(b"cpu"):
                break  # the lines of the cores come first
            if name in self._cores:
                busy += sum(int(fields[column]) for column in _BUSY)
                steal += int(fields[_STEAL])
        return busy * self._tick_s, steal * self._tick_s


def _own_s() -> float:
    return time.process_time()
