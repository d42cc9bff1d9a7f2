"""The local engine: the cells of a run one after another on this machine, each in a process of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from prunebench.cell.__main__ import command
from prunebench.cell.events import Event, EventReader
from prunebench.cell.lock import SCRATCH_PREFIX
from prunebench.cell.record import Error, Record, Status
from prunebench.cell.spec import Cell
from prunebench.cell.store import RunStore
from prunebench.engine.launcher import Ended, Job, Launcher, LauncherDiedError, Limits
from prunebench.engine.memory import kernel_kills
from prunebench.errors import PrunebenchError
from prunebench.plugin.host import Registry

LOG_TAIL = 8000
LOG_MOST = 64_000_000
"""A log is cut to its tail where it grows beyond so many bytes."""
LOG_KEPT = 1_000_000


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
                if record.status == "ok":
                    self.store.stages_path(cell.id).unlink(missing_ok=True)
                self.registry.notify("prunebench_cell_finished", cell=cell, record=record)
                self.watcher.finished(record)
                yield record
        finally:
            shutil.rmtree(self.store.scratch_path, ignore_errors=True)

    def _one(self, cell: Cell) -> Record:
        scratch, temporary, log = self._prepare(cell)
        follow = _Follower(EventReader(scratch / "events.jsonl"), self.watcher, log)
        result = scratch / "record.json"
        argv = [str(self.store.spec_path(cell.id)), "--record", str(result), "--events", str(scratch / "events.jsonl")]
        argv += ["--stages", str(self.store.stages_path(cell.id))]
        if cell.keep_model:
            argv += ["--keep", str(self.store.model_path(cell.id))]
        started = datetime.now(UTC).isoformat(timespec="seconds")
        limits = Limits(cell.time_limit_s, cell.memory_limit_bytes)
        killed = kernel_kills()
        ended: Ended | None = None
        try:
            ended = self.launcher.run(Job(argv, log, limits, _surroundings(temporary)), follow)
            if ended.cut is None and ended.code in (0, 1) and result.exists():
                return _with_leftovers(Record.model_validate_json(result.read_bytes()), ended)
            lost = _cause(ended, limits, starved=killed is not None and (kernel_kills() or 0) > killed)
        except ValidationError as error:
            lost = _Lost("failed", "bad record", str(error))
        except LauncherDiedError as error:
            lost = _Lost("failed", "launcher died", str(error))
            with log.open("a", encoding="utf-8") as file:
                file.write(error.said)
        finally:
            follow()
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
        return self._lost(cell, started, follow.phase, lost, ended)

    def _prepare(self, cell: Cell) -> tuple[Path, str, Path]:
        """An empty folder for a cell's result, one for its temporary files, and its log, which does not exist yet."""
        scratch, log = self.store.scratch_path / cell.id, self.store.log_path(cell.id)
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            # its name is short: sockets are made there, whose names are limited
            return scratch, tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{self.launcher.mark[:8]}-"), log
        except OSError as error:
            raise PrunebenchError(
                f"no cell can be started in {self.store.folder}: {error.strerror or error}",
                hint="free some space; what is finished is kept, the same command goes on",
            ) from error

    def _lost(self, cell: Cell, started: str, phase: str, lost: _Lost, ended: Ended | None) -> Record:
        """The record of a cell whose process could not write one itself."""
        record = Record(
            id=cell.id,
            cell=cell,
            status=lost.status,
            started=started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            error=Error(
                phase=phase,
                type=lost.kind,
                message=lost.message,
                hint=lost.hint,
                log_tail=_tail(self.store.log_path(cell.id), LOG_TAIL),
                command=command(self.store.spec_path(cell.id)),
                peak_rss_bytes=None if ended is None else ended.peak_rss_bytes,
            ),
        )
        return record if ended is None else _with_leftovers(record, ended)


@dataclass
class _Follower:
    """Passes the cell's events on, remembers its phase, and keeps its log from filling the disk."""

    reader: EventReader
    watcher: Watcher
    log: Path
    phase: str = "start"

    def __call__(self) -> None:
        for event in self.reader.read():
            self.phase = event.phase
            self.watcher.moved(event)
        try:
            if self.log.stat().st_size > LOG_MOST:
                tail = _tail(self.log, LOG_KEPT)
                os.truncate(self.log, 0)  # the cell appends, so it goes on at the new end
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(f"... more than {LOG_MOST} bytes of output, its end:\n{tail}")
        except OSError:  # no log, or no space for one: the cell's own trouble
            return


@dataclass(frozen=True)
class _Lost:
    """Why a cell's process left no record."""

    status: Status
    kind: str
    message: str
    hint: str | None = None


def _cause(ended: Ended, limits: Limits, *, starved: bool) -> _Lost:
    """What an end without a record means; ``starved`` where the kernel killed for want of memory meanwhile."""
    if ended.cut == "time":
        message = f"ended by the harness, the limit is {limits.time_s:g} s"
        return _Lost("timeout", "timeout", message, "`limits: {time_s: ...}` in the suite")
    if ended.cut == "memory":
        message = f"held {ended.peak_rss_bytes or 0:,} bytes of memory, the limit is {limits.memory_bytes or 0:,}"
        return _Lost("out-of-memory", "memory limit", message, "`limits: {memory: ...}` in the suite")
    if ended.code >= 0:
        return _Lost("failed", "exit", f"the process ended with code {ended.code} and left no record")
    name = _signal_name(-ended.code)
    if ended.code == -signal.SIGKILL and starved:
        return _Lost("out-of-memory", name, "killed by the kernel because memory ran out")
    if ended.code == -signal.SIGKILL:
        return _Lost("failed", name, "killed from outside; the kernel names no lack of memory")
    return _Lost("failed", name, f"the process was ended by {name}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _with_leftovers(record: Record, ended: Ended) -> Record:
    """``record`` with a flag for the processes that its cell left running."""
    if not ended.left:
        return record
    flag = f"left {len(ended.left)} processes running, which were ended: {'; '.join(ended.left[:3])}"
    return record.model_copy(update={"flags": [*record.flags, flag]})


def _surroundings(temporary: str) -> dict[str, str]:
    """A folder of its own for temporary files, removed with the cell; compiled kernels stay where all cells find them."""
    kernels = Path(tempfile.gettempdir()) / f"torchinductor_{_user()}"
    return {"TMPDIR": temporary, "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(kernels))}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _tail(log: Path, most: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most))
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""
