"""CPU time that a foreign process takes, against that of a child of our own; both burn a core."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from prunebench.measure.devices.cpu_contention import CpuWatch

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]
BURN = """
import time
end = time.process_time() + 0.6
while time.process_time() < end:
    pass
"""
# A child that ends at once leaves the burning process to init.
LEAVE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}])"


def seconds(code: str) -> float:
    """CPU seconds of others while a child of ours runs ``code``."""
    watch = CpuWatch()
    watch.phase("latency")
    with subprocess.Popen([sys.executable, "-c", code]):
        time.sleep(1.0)
    (found,) = watch.result()
    return found.others_share * found.wall_s * len(os.sched_getaffinity(0))


def test_a_foreign_process_shows_and_our_own_child_does_not() -> None:
    """Other load on the machine is in both figures, so some pair of them shows the difference."""
    pairs = [(seconds(LEAVE), seconds(BURN)) for _ in range(6)]
    told = ", ".join(f"{foreign:.2f} / {own:.2f}" for foreign, own in pairs)
    print(f"\nCPU seconds of others, foreign process / own child: {told}")
    assert max(foreign - own for foreign, own in pairs) > 0.2
