"""Phases of a cell: what runs now, since when, told to everybody who watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prunebench.callbacks import ignore
from prunebench.record.record import PhaseTime


@dataclass
class Phases:
    """Times the phases and tells who asks: ``told`` of each begin, ``moved`` of (phase, done, total), ``tagged`` of each
    begin too, to tag memory samples. ``admitted`` is called before all that and returns when the phase may begin.
    """

    told: Callable[[str], None] = ignore
    moved: Callable[[str, int, int], None] = ignore
    tagged: Callable[[str], None] = ignore
    admitted: Callable[[str], None] = ignore
    times: list[PhaseTime] = field(default_factory=list)
    current: str = "start"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.admitted(name)
        self.current = name
        self.told(name)
        self.tagged(name)
        begun = time.perf_counter()
        yield  # on an exception `current` stays: it is the phase that failed
        self.times.append(PhaseTime(phase=name, seconds=time.perf_counter() - begun))

    def progress(self, done: int, total: int) -> None:
        self.moved(self.current, done, total)

    def seconds(self, name: str) -> float:
        return sum(entry.seconds for entry in self.times if entry.phase == name)
