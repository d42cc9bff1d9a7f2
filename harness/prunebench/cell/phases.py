"""The phases of a cell: which one runs, how long each took, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prunebench.callbacks import ignore
from prunebench.record.record import PhaseTime


@dataclass
class Phases:
    """Times the phases of a cell and tells others about them."""

    began: Callable[[str], None] = ignore
    """Called with the name of each phase when it begins."""
    moved: Callable[[str, int, int], None] = ignore
    """Called with (phase, done, total)."""
    say: Callable[[str], None] = ignore
    """Called with a few words on how the current phase goes."""
    admit: Callable[[str], None] = ignore
    """Called before a phase begins; returns when it may begin."""
    times: list[PhaseTime] = field(default_factory=list)
    current: str = "start"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.admit(name)
        self.current = name
        self.began(name)
        begun, computed = time.perf_counter(), time.process_time()
        yield
        # Not in a `finally`: after an exception `current` stays the phase that failed.
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - computed
        self.times.append(PhaseTime(phase=name, seconds=seconds, cpu_s=cpu_s))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within a phase that others may share: wait until this cell computes alone, as if timed."""
        self.admit("latency")
        self.began(self.current)  # whoever waits has told of another phase
        try:
            yield
        finally:
            self.admit(self.current)
            self.began(self.current)

    def progress(self, done: int, total: int) -> None:
        """Report how far the current phase is."""
        self.moved(self.current, done, total)

    def seconds(self, name: str) -> float:
        """How long the phases called ``name`` took together."""
        return sum(entry.seconds for entry in self.times if entry.phase == name)
