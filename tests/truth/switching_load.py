"""A load for truth tests: every core busy and idle in turn, for random times.

Run as a program it burns one core in the stretches that its arguments give.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def switching_load(seed: int, *, busy_s: float = 1.0, idle_s: float = 1.0) -> Iterator[None]:
    """Burn all cores, on and off together, while the context is open.

    Stretches are exponentially distributed with these means, so that no rhythm of the measurement
    can fall in step with them.
    """
    arguments = [str(seed), str(busy_s), str(idle_s), str(time.time())]
    burners = [
        subprocess.Popen([sys.executable, __file__, *arguments]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def burn(seed: int, busy_s: float, idle_s: float, begun: float) -> None:
    """All burners draw the same stretches and count from the same moment, so they switch together."""
    draw = random.Random(seed)
    until = begun
    while True:
        until += draw.expovariate(1 / busy_s)
        while time.time() < until:
            pass
        until += draw.expovariate(1 / idle_s)
        time.sleep(max(0.0, until - time.time()))


if __name__ == "__main__":
    burn(int(sys.argv[1]), *map(float, sys.argv[2:5]))
