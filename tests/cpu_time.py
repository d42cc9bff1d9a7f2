"""CPU time, which other processes disturb least: on one thread it is the work itself.

And times beside a yardstick's on a machine that drifts.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def cpu_timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What ``work`` returns, and the seconds of CPU time that this process took for it."""
    begun = time.process_time()
    found = work()
    return found, time.process_time() - begun


def beside_neighbours(times: Sequence[float], yardsticks: Sequence[float]) -> list[float]:
    """Each time over the mean of the yardstick's in front of it and behind it: machines drift."""
    return [2 * each / sum(pair) for each, pair in zip(times, pairwise(yardsticks), strict=True)]


def cpu_seconds_of_children() -> float:
    """Of all processes that this one has waited for, and those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_seconds_of(pid: int) -> float:
    """Seconds that another process has computed so far, by the kernel's scheduler (Linux)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
