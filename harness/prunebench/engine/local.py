"""The local engine: the cells of a run one after another on this machine, each in a process of its own."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from prunebench.cell.__main__ import command
from prunebench.cell.events import Event, EventReader
from prunebench.cell.record import Error, Record, Status
from prunebench.cell.spec import Cell
from prunebench.cell.store import RunStore
from prunebench.engine.launcher import Launcher, LauncherDiedError
from prunebench.plugin.host import Registry

LOG_TAIL = 8000


class Watcher(Protocol):
    """Who wants to see a run go by."""

    def started(self, cell: Cell) -> None: ...

    def moved(self, event: Event) -> None: ...

    def finished(self, record: Record) -> None: ...


@dataclass
class LocalEngine:
    """Runs cells one at a time, so that nothing else of ours disturbs a timed one."""

    store: RunStore
    registry: Registry
    watcher: Watcher
    launcher: Launcher

    def run(self, cells: Sequence[Cell]) -> Iterator[Record]:
        """Run ``cells`` in order and store each record; an exception, Ctrl-C too, ends the running cell."""
        try:
            for cell in cells:
                self.watcher.started(cell)
                self.registry.notify("prunebench_cell_started", cell=cell)
                record = self._one(cell)
                self.store.write(record)
                self.registry.notify("prunebench_cell_finished", cell=cell, record=record)
                self.watcher.finished(record)
                yield record
        finally:
            shutil.rmtree(self.store.scratch_path, ignore_errors=True)

    def _one(self, cell: Cell) -> Record:
        scratch = self.store.scratch_path / cell.id
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        log = self.store.log_path(cell.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        follow = _Follower(EventReader(scratch / "events.jsonl"), self.watcher)
        result = scratch / "record.json"
        argv = [str(self.store.spec_path(cell.id)), "--record", str(result), "--events", str(scratch / "events.jsonl")]
        if cell.keep_model:
            argv += ["--keep", str(self.store.model_path(cell.id))]
        started = datetime.now(UTC).isoformat(timespec="seconds")
        begun = time.monotonic()
        lost = _Lost("failed", "exit", "")
        try:
            code = self.launcher.run(argv, log, follow, cell.time_limit_s)
            if code in (0, 1) and result.exists():
                return Record.model_validate_json(result.read_bytes())
            if code is None:
                message = f"ended after {time.monotonic() - begun:.0f} s, the limit is {cell.time_limit_s:g} s"
                lost = _Lost("timeout", "timeout", message)
            else:
                lost = _cause(code)
        except ValidationError as error:
            lost = _Lost("failed", "bad record", str(error))
        except LauncherDiedError as error:
            lost = _Lost("failed", "launcher died", str(error))
            with log.open("a", encoding="utf-8") as file:
                file.write(error.said)
        finally:
            follow()
            shutil.rmtree(scratch, ignore_errors=True)
        return self._lost(cell, started, follow.phase, lost)

    def _lost(self, cell: Cell, started: str, phase: str, lost: _Lost) -> Record:
        """The record of a cell whose process could not write one itself."""
        return Record(
            id=cell.id,
            cell=cell,
            status=lost.status,
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            error=Error(
                phase=phase,
                type=lost.kind,
                message=lost.message,
                log_tail=_tail(self.store.log_path(cell.id)),
                command=command(self.store.spec_path(cell.id)),
            ),
        )


@dataclass
class _Follower:
    """Passes the cell's events on and remembers its phase."""

    reader: EventReader
    watcher: Watcher
    phase: str = "start"

    def __call__(self) -> None:
        for event in self.reader.read():
            self.phase = event.phase
            self.watcher.moved(event)


@dataclass(frozen=True)
class _Lost:
    """Why a cell's process left no record."""

    status: Status
    kind: str
    message: str


def _cause(code: int) -> _Lost:
    """What an exit without a record means."""
    if code >= 0:
        return _Lost("failed", "exit", f"the process ended with code {code} and left no record")
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return _Lost("failed", name, "killed from outside, most often by the kernel because memory ran out")
    return _Lost("failed", name, f"the process was ended by {name}")


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_TAIL:].decode(errors="replace")
    except FileNotFoundError:
        return ""
