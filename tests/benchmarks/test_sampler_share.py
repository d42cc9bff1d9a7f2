"""What sampling costs: a fixed piece of work with the sampler on and off, alternating."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest

from cpu_time import cpu_seconds_of
from prunebench.measure.devices.memory import MemorySampler
from prunebench.measure.speed.summary import paired_ratio

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/PID/schedstat"),
]
ROUNDS = 120
STEPS = 1_000_000


def work() -> float:
    """Seconds of CPU-bound work in one thread; it allocates nothing that grows."""
    begun = time.perf_counter()
    total = 0
    for number in range(STEPS):
        total = (total + number * number) & 0xFFFFFFFF
    assert total
    return time.perf_counter() - begun


def test_the_sampler_costs_less_than_one_per_cent(figure: Any) -> None:
    """The paired ratio of wall time with and without it, and its own share of CPU time.

    One sampler for the whole test, stopped by a signal in the rounds without it, so that its start
    does not count.
    """
    on: list[float] = []
    off: list[float] = []
    used = 0.0
    with MemorySampler(gpu=False) as sampler:
        while os.fstat(sampler._file.fileno()).st_size == 0:
            time.sleep(0.01)
        pid = sampler._process.pid
        work()
        for number in range(ROUNDS):
            for watched in (True, False) if number % 2 else (False, True):
                os.kill(pid, signal.SIGCONT if watched else signal.SIGSTOP)
                time.sleep(0.01)
                before = cpu_seconds_of(pid)
                (on if watched else off).append(work())
                used += cpu_seconds_of(pid) - before
        os.kill(pid, signal.SIGCONT)
    ratio = paired_ratio(on, off)
    share = used / sum(on)
    figure(
        "memory sampler on / off",
        f"{ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], {share:.2%} of a core",
        "less than 1.01, 2 %",
    )
    assert ratio.low < 1.01
    assert share < 0.02  # of a core that is not the work's own where there are two
