"""How long a run will still take, from the phases that its finished cells measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from prunebench.cell.events import Event
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import LatencySpec
from prunebench.record.record import Record
from prunebench.record.speed import Latency

TIMES_SHAPES = ("latency", "2:4 kernels")
"""Phases that time one shape after the other."""


@dataclass
class RunningCell:
    """A cell that runs now, as far as the run has been told."""

    cell: Cell
    number: int
    """1 for the cell that started first."""
    begun: float
    """When it began, in seconds of the clock that also says what time it is now."""
    phase: str = "start"
    done: int = 0
    total: int = 0
    """Parts of the phase; 0 if it does not count them."""
    said: str = ""
    """How the phase goes, in a few words."""
    past: list[str] = field(default_factory=list)
    """The phases before this one."""

    def moved(self, event: Event) -> None:
        if event.phase != self.phase:
            self.past.append(self.phase)
        self.phase, self.done, self.total = event.phase, event.done, event.total
        self.said = event.said

    @property
    def share(self) -> float | None:
        """How much of the phase is done, 0 to 1; None if it does not count."""
        return self.done / self.total if self.total else None

    @property
    def doing(self) -> str:
        """The phase, and what it says; if it times shapes one after the other, which one now."""
        if self.said:
            return f"{self.phase} ({self.said})"
        if self.phase not in TIMES_SHAPES or self.done >= len(self.cell.latency):
            return self.phase
        return f"{self.phase} ({shape_in_words(self.cell.latency[self.done])})"


@dataclass
class TimeLeft:
    """The estimate. A phase takes as long as it took in finished cells of the same method.

    If no cell of the method has finished, in finished cells of any method.
    """

    _phases: dict[str, list[Mapping[str, float]]] = field(default_factory=dict, init=False)
    """By method: the seconds of each phase, of every finished cell."""

    def finished(self, record: Record) -> None:
        """A cell that failed tells nothing: it may have ended at any point."""
        if record.status == "ok" and record.cost is not None:
            seconds: dict[str, float] = {}
            for phase in record.cost.phases:  # a phase can come twice
                seconds[phase.phase] = seconds.get(phase.phase, 0.0) + phase.seconds
            self._phases.setdefault(record.cell.method.name, []).append(seconds)

    def seconds(
        self, running: Sequence[RunningCell], waiting: Iterable[Cell], now: float
    ) -> float | None:
        """Seconds until ``running`` and ``waiting`` have ended; None as long as no cell has."""
        if not self._phases:
            return None
        ahead = [self._rest(one, now) for one in running]
        ahead += [sum(self._expected(cell).values()) for cell in waiting]
        at_once = max(1, len(running))
        # Cells that run at once share the work, but no cell is divided.
        return max([sum(ahead) / at_once, *ahead[: len(running)]], default=0.0)

    def _expected(self, cell: Cell) -> Mapping[str, float]:
        known = self._phases.get(cell.method.name) or [
            one for several in self._phases.values() for one in several
        ]
        names = dict.fromkeys(name for one in known for name in one)
        return {name: fmean(one.get(name, 0.0) for one in known) for name in names}

    def _rest(self, one: RunningCell, now: float) -> float:
        """Seconds that a running cell still takes."""
        expected = self._expected(one.cell)
        passed = {*one.past, one.phase}
        later = sum(seconds for name, seconds in expected.items() if name not in passed)
        current = expected.get(one.phase, 0.0) * (1 - (one.share or 0.0))
        if one.share is None:
            # The phase does not count its parts: what it may still take shrinks as time passes.
            before = sum(seconds for name, seconds in expected.items() if name in one.past)
            current = max(0.0, current - max(0.0, now - one.begun - before))
        return later + current


def in_words(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min': as exact as an estimate deserves."""
    if seconds < 60:
        return f"{round(seconds) if seconds < 10 else round(seconds / 10) * 10} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shape_in_words(shape: LatencySpec | Latency) -> str:
    """'prompt 128, batch 1'."""
    return f"prompt {shape.prompt}, batch {shape.batch_size}"
