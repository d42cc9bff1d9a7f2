"""Phases of a cell: what runs now, since when, told to everybody who watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunebench.cell.events import EventWriter
from prunebench.cell.record import PhaseTime

if TYPE_CHECKING:
    from prunebench.measure.memory import MemorySampler


@dataclass
class Phases:
    """Times the phases and tags the memory samples with them."""

    events: EventWriter
    sampler: MemorySampler
    times: list[PhaseTime] = field(default_factory=list)
    current: str = "start"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.current = name
        self.events.phase(name)
        self.sampler.phase(name)
        begun = time.perf_counter()
        yield  # on an exception `current` stays: it is the phase that failed
        self.times.append(PhaseTime(phase=name, seconds=time.perf_counter() - begun))

    def progress(self, done: int, total: int) -> None:
        self.events.progress(self.current, done, total)

    def seconds(self, name: str) -> float:
        return sum(entry.seconds for entry in self.times if entry.phase == name)
