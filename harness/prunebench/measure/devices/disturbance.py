"""Whether something else used the machine while a sample was timed.

A figure that a busy machine made up is worse than none, so every timed round is enclosed by two
readings of what the kernel knows: how long our threads waited for a core, how much of our cores
other processes used, and how much the hypervisor took from this virtual machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

Value = TypeVar("Value")

WAITED = 0.05
"""Disturbed if our threads waited longer than this share of the round for a core."""
OTHERS = 0.15
"""Disturbed if other processes ran on our cores for longer than this share of the round."""
STOLEN = 0.05
"""Disturbed if the hypervisor took more than this share of the round from our cores."""
TOLERANCE = 0.25
"""Disturbed if parts that were timed one by one miss the whole by more than this share of it."""
COARSE_TICKS = 3
"""/proc/stat counts in ticks of 10 ms a core: fewer ticks than this say nothing."""

_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq; guest time is part of user
_STEAL = 7


class DisturbedError(Exception):
    """Every try to measure was disturbed; the message says by what."""


class Watch(Protocol):
    """Tells whether the time between two readings was disturbed."""

    @property
    def blind(self) -> str | None:
        """Why nothing can be told here; None if it can."""

    def read(self) -> object:
        """A reading, to be taken directly before and after what is timed."""

    def disturbed(self, before: Any, after: Any) -> str | None:
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

    def __init__(self, proc: Path = Path("/proc"), children: Collection[int] = ()) -> None:
        """``children``: processes whose work is ours too."""
        self.blind: str | None = None
        self._tasks = [f"{proc}/{name}/task" for name in ("self", *children)]
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
            waited, ran = self._waited()
            # A process knows its own time exactly; the kernel brings that of threads up to date
            # only when they leave a core.
            own = _own_s() if len(self._tasks) == 1 else ran
            return Reading(time.perf_counter(), waited, busy, own, stolen)
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
            return f"its threads waited for a core ({_percent(passed.waited_s / wall)} of the time)"
        if passed.stolen_s > max(coarse, STOLEN * wall):
            return f"the hypervisor took a core ({_percent(passed.stolen_s / wall)} of the time)"
        if others > max(coarse, OTHERS * wall):
            return f"other processes used the cores ({_percent(others / wall)} of one)"
        return None

    def close(self) -> None:
        for file in (*self._threads.values(), self._stat):
            with suppress(OSError):
                os.close(file)
        self._threads, self._stat = {}, -1

    def __del__(self) -> None:
        self.close()

    def _waited(self) -> tuple[float, float]:
        """Seconds that all threads waited, and seconds that they ran.

        The second and the first number of schedstat, in nanoseconds.
        """
        present = [
            f"{tasks}/{thread}"
            for tasks in self._tasks
            for thread in os.listdir(tasks)  # noqa: PTH208 - half the time of iterdir
        ]
        for gone in self._threads.keys() - set(present):
            os.close(self._threads.pop(gone))
        waited = ran = 0
        for thread in present:
            try:
                file = self._threads.get(thread)
                if file is None:
                    file = os.open(f"{thread}/schedstat", os.O_RDONLY)
                    self._threads[thread] = file
                numbers = os.pread(file, 100, 0).split()
                ran += int(numbers[0])
                waited += int(numbers[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended since the listing
                continue
        if not self._threads:
            raise OSError("no thread has a schedstat")
        return waited / 1e9, ran / 1e9

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


class Watches:
    """Several watches as one: a span is disturbed if one of them says so."""

    def __init__(self, *watches: Watch) -> None:
        self._watches = watches

    @property
    def blind(self) -> str | None:
        return "; ".join(watch.blind for watch in self._watches if watch.blind) or None

    def read(self) -> list[object]:
        return [watch.read() for watch in self._watches]

    def disturbed(self, before: Any, after: Any) -> str | None:
        for watch, old, new in zip(self._watches, before, after, strict=True):
            if reason := watch.disturbed(old, new):
                return reason
        return None


def undisturbed(once: Callable[[], Value], watch: Watch, tries: int = 3) -> Value:
    """What ``once`` gives in the first of up to ``tries`` calls that nothing disturbed.

    Raises DisturbedError if each of them was disturbed.
    """
    reason = None
    for _ in range(tries):
        before = watch.read()
        value = once()
        reason = watch.disturbed(before, watch.read())
        if reason is None:
            return value
    raise DisturbedError(f"disturbed in each of {tries} tries: {reason}")


def cause(reason: str) -> str:
    """A reason without its figure, so that reasons of one cause can be counted."""
    return reason.partition(" (")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _own_s() -> float:
    return time.process_time()
