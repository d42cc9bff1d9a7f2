"""Run cells side by side on one machine: one thread and one launcher per slot.

The threads only talk to the main thread through a queue. The main thread alone calls the session,
so watchers and plugins need no locks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from prunebench.cell.events import Event
from prunebench.engine.gpus import Slot
from prunebench.engine.job import Launcher
from prunebench.engine.session import Session
from prunebench.engine.supervise import CellPaths, run_cell_process
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import VARIABLE, TimingLock, lock_folder
from prunebench.record.record import Record

TICK_S = 0.1


class StoppedError(BaseException):
    """The run is over, so the cell must end; not a fault of the cell."""


class SlotMessage(NamedTuple):
    """What a slot reports: it is free, its cell moved or ended, or the slot itself failed."""

    slot: int
    kind: Literal["free", "moved", "ended", "broken"]
    content: Event | Record | BaseException | None = None


def side_by_side(
    cells: Sequence[Cell], slots: Sequence[Slot], session: Session
) -> Iterator[Record]:
    """Run ``cells`` in order, one per slot at a time, and yield their records as they end.

    Timed phases run alone (`prunebench.isolation.timing_lock`). An exception in a slot is raised
    here; then, and when this generator is closed, all cells are ended.
    """
    left = deque(cells)
    folder = lock_folder() if len(slots) > 1 else None
    run = _Run(session, folder)
    workers = [
        _Worker(number, slot, run, session.starter.another(number) if number else session.starter)
        for number, slot in enumerate(slots)
    ]
    running: dict[int, Cell] = {}
    try:
        for worker in workers:
            worker.start()
        while left or running:
            message = run.messages.get()
            slot, content = message.slot, message.content
            if message.kind == "free" and left:
                running[slot] = left.popleft()
                session.started(running[slot])
                workers[slot].assigned.put(running[slot])
            elif isinstance(content, Event):
                session.moved(
                    running[slot], content.phase, content.done, content.total, content.said
                )
            elif isinstance(content, Record):
                del running[slot]
                # Pruning was not alone, so its time is not comparable with that of other runs.
                beside = {"slots": len(slots)} if len(slots) > 1 else {}
                provenance = {**content.provenance, **beside}
                yield content.model_copy(update={"provenance": provenance})
            elif isinstance(content, BaseException):
                raise content
    finally:
        run.over.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()


class _Run:
    """What the slots of one run share."""

    def __init__(self, session: Session, lock_folder: Path | None) -> None:
        self.store = session.store
        self.lock_folder = lock_folder
        self.messages: SimpleQueue[SlotMessage] = SimpleQueue()
        self.over = threading.Event()


class _Worker(threading.Thread):
    """Runs the cells that are assigned to its slot, one at a time, until the run is over."""

    def __init__(self, number: int, slot: Slot, run: _Run, starter: Launcher) -> None:
        super().__init__(name=f"prunebench-slot-{number}", daemon=True)
        self.assigned: SimpleQueue[Cell] = SimpleQueue()
        self._number = number
        self._run = run
        self._starter = starter
        self._lock = TimingLock(run.lock_folder)
        locked = {} if run.lock_folder is None else {VARIABLE: str(run.lock_folder)}
        self._environment = {**slot.environment, **locked}

    def run(self) -> None:
        try:
            while not self._run.over.is_set():
                self._report("free")
                cell = self._next_cell()
                # A cell imports before its first phase, when it does not hold the lock itself. Hold
                # it for the cell, so that the imports disturb no timed phase.
                self._lock.share(self._check)
                record = run_cell_process(
                    cell,
                    CellPaths.in_store(self._run.store, cell.id),
                    self._starter,
                    self._moved,
                    tick=self._check,
                    environment=self._environment,
                )
                self._lock.release()
                self._report("ended", record)
        except StoppedError:
            pass
        except BaseException as error:
            self._report("broken", error)
        finally:
            self._lock.close()
            # The launcher of the first slot belongs to the session.
            if self._number:
                self._starter.close()

    def _next_cell(self) -> Cell:
        while True:
            self._check()
            with suppress(Empty):
                return self.assigned.get(timeout=TICK_S)

    def _check(self) -> None:
        if self._run.over.is_set():
            raise StoppedError

    def _moved(self, event: Event) -> None:
        # From its first event on the cell holds the lock itself, or waits for it: holding it here
        # any longer would make the cell wait for its own supervisor.
        self._lock.release()
        self._report("moved", event)

    def _report(
        self,
        kind: Literal["free", "moved", "ended", "broken"],
        content: Event | Record | BaseException | None = None,
    ) -> None:
        self._run.messages.put(SlotMessage(self._number, kind, content))
