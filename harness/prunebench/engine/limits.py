"""Watch a process and tell when it exceeds its time or memory limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from prunebench.engine.job import Limits
from prunebench.engine.memory_limit import used_bytes

TICK_S = 0.1
# With a memory limit: a process can fill gigabytes within a tenth of a second.
MEMORY_TICK_S = 0.02


class LimitWatch:
    """Watches the limits of one process; its time starts now."""

    def __init__(self, pid: int, limits: Limits, waited_s: Callable[[], float]) -> None:
        self._pid = pid
        self._limits = limits
        self._waited_s = waited_s
        self._deadline = None if limits.time_s is None else time.monotonic() + limits.time_s
        self.tick_s = TICK_S if limits.memory_bytes is None else MEMORY_TICK_S
        self.peak_bytes: int | None = None
        """The most memory that it was seen to use; None without a memory limit."""
        self.exceeded: Literal["time", "memory"] | None = None

    def check(self) -> bool:
        """Whether the process exceeds a limit; call it every ``tick_s`` seconds."""
        if self._limits.memory_bytes is not None:
            used = used_bytes(self._pid, self._limits.memory_bytes)
            if used is not None:
                self.peak_bytes = max(used, self.peak_bytes or 0)
                if used > self._limits.memory_bytes:
                    self.exceeded = "memory"
        if self._deadline is not None and time.monotonic() > self._deadline + self._waited_s():
            self.exceeded = self.exceeded or "time"
        return self.exceeded is not None
