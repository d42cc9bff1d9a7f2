"""Watchers of a run for tests."""

from __future__ import annotations

from prunebench.cell.events import Event
from prunebench.experiment.cell import Cell
from prunebench.record.record import Record


class Quiet:
    """Watches without showing anything."""

    def started(self, cell: Cell) -> None:
        pass

    def moved(self, cell: Cell, event: Event) -> None:
        pass

    def finished(self, record: Record) -> None:
        pass


class Noting:
    """Notes everything it is told, one line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, cell: Cell) -> None:
        self.lines.append(f"started {cell.seed}")

    def moved(self, cell: Cell, event: Event) -> None:
        self.lines.append(f"moved {cell.seed} {event.phase} {event.done} {event.total}")

    def finished(self, record: Record) -> None:
        self.lines.append(f"finished {record.cell.seed} {record.status}")
