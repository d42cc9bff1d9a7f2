"""Cells side by side on one machine: a thread and a launcher for each, and one thread that hears from all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from prunebench.cell.events import Event
from prunebench.engine.gpus import Slot
from prunebench.engine.launcher import Launcher
from prunebench.engine.session import Session
from prunebench.engine.supervise import CellPaths, run_cell_process
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import VARIABLE, TimingLock, lock_folder
from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore

TICK_S = 0.1


class StoppedError(BaseException):
    """The run is over; no fault of the cell that is ended by it."""


class SlotMessage(NamedTuple):
    """What a slot tells: it is free, its cell has come so far, has ended; or the slot itself has, for a reason."""

    slot: int
    kind: Literal["free", "moved", "ended", "broken"]
    what: Event | Record | BaseException | None = None


def side_by_side(
    cells: Sequence[Cell], slots: Sequence[Slot], session: Session
) -> Iterator[Record]:
    """Run ``cells`` in as many processes at once as there are slots, in order; give the records as they end.

    Timed phases take turns (`prunebench.isolation.timing_lock`). Raises what a slot raises; then, and when it is closed, all ends.
    """
    left = deque(cells)
    over = threading.Event()
    heard: SimpleQueue[SlotMessage] = SimpleQueue()
    lock = None if len(slots) == 1 else lock_folder()
    starters = [
        session.starter,
        *(session.starter.another(number) for number in range(1, len(slots))),
    ]
    workers = [
        _Worker(number, starter, slot.environment, lock, session.folder, heard, over)
        for number, (slot, starter) in enumerate(zip(slots, starters, strict=True))
    ]
    running: dict[int, Cell] = {}
    try:
        for worker in workers:
            worker.start()
        while left or running:
            said = heard.get()
            if said.kind == "free" and left:
                running[said.slot] = left.popleft()
                session.started(running[said.slot])
                workers[said.slot].given.put(running[said.slot])
            elif isinstance(said.what, Event):
                session.moved(running[said.slot], said.what.phase, said.what.done, said.what.total)
            elif isinstance(said.what, Record):
                del running[said.slot]
                more = (
                    {} if lock is None else {"slots": len(slots)}
                )  # what pruning took, it took beside others
                yield said.what.model_copy(update={"provenance": {**said.what.provenance, **more}})
            elif isinstance(said.what, BaseException):
                raise said.what
    finally:
        over.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()


class _Worker(threading.Thread):
    """Runs the cells that it is given, one at a time, until the run is over."""

    def __init__(
        self,
        number: int,
        starter: Launcher,
        environment: Mapping[str, str],
        lock: Path | None,
        folder: Path,
        heard: SimpleQueue[SlotMessage],
        over: threading.Event,
    ) -> None:
        super().__init__(name=f"prunebench-slot-{number}", daemon=True)
        self.given: SimpleQueue[Cell] = SimpleQueue()
        self._number = number
        self._starter = starter
        self._lock = TimingLock(lock)
        self._environment = {**environment, **({} if lock is None else {VARIABLE: str(lock)})}
        self._store = RunStore(folder)
        self._heard = heard
        self._over = over

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._say("free")
                cell = self._next()
                self._lock.share(
                    self._check
                )  # what it imports before its first phase disturbs nobody who is timed
                place = CellPaths.in_store(self._store, cell.id)
                record = run_cell_process(
                    cell,
                    place,
                    self._starter,
                    self._moved,
                    tick=self._check,
                    environment=self._environment,
                )
                self._lock.release()
                self._say("ended", record)
        except StoppedError:
            pass
        except BaseException as error:
            self._say("broken", error)
        finally:
            self._lock.close()
            if self._number:  # the first one belongs to the run
                self._starter.close()

    def _next(self) -> Cell:
        while True:
            self._check()
            with suppress(Empty):
                return self.given.get(timeout=TICK_S)

    def _check(self) -> None:
        if self._over.is_set():
            raise StoppedError

    def _moved(self, event: Event) -> None:
        self._lock.release()  # the cell has a place of its own, or waits for one
        self._say("moved", event)

    def _say(
        self,
        kind: Literal["free", "moved", "ended", "broken"],
        what: Event | Record | BaseException | None = None,
    ) -> None:
        self._heard.put(SlotMessage(self._number, kind, what))
