"""One cell on this machine: a process of its own, held to its limits, and a record whatever becomes of it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from prunebench.callbacks import ignore
from prunebench.cell.__main__ import command
from prunebench.cell.events import Event, EventReader
from prunebench.engine.launcher import Job, Launcher, LauncherDiedError, Limits, ProcessExit
from prunebench.engine.memory_limit import kernel_kills
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import WAITING
from prunebench.record.record import Error, Record, Status
from prunebench.store.lock import SCRATCH_PREFIX
from prunebench.store.run_folder import RunStore

LOG_TAIL = 8000
LOG_MOST = 64_000_000
"""A log is cut to its tail where it grows beyond so many bytes."""
LOG_KEPT = 1_000_000
TASK_IMPORTS = ("lm_eval", "lm_eval.models.huggingface", "datasets")
"""What cells with tasks import beside torch and transformers: three seconds."""
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class CellPaths:
    """Where a cell finds its spec and leaves what it makes."""

    spec: Path
    scratch: Path
    """A folder made for the cell and removed after it."""
    log: Path
    partial_results: Path
    model: Path

    @classmethod
    def in_store(cls, store: RunStore, cell_id: str) -> CellPaths:
        """In the run folder."""
        return cls(
            spec=store.spec_path(cell_id),
            scratch=store.scratch_path / cell_id,
            log=store.log_path(cell_id),
            partial_results=store.partial_results_path(cell_id),
            model=store.model_path(cell_id),
        )


@dataclass(frozen=True)
class LostCell:
    """Why a cell left no record; ``kind`` in two or three words."""

    status: Status
    kind: str
    message: str
    hint: str | None = None


def run_cell_process(
    cell: Cell,
    place: CellPaths,
    starter: Launcher,
    moved: Callable[[Event], None],
    *,
    tick: Callable[[], None] = ignore,
    environment: Mapping[str, str] = NOTHING,
) -> Record:
    """Run ``cell`` to its end, calling ``tick`` ten times a second; what they raise ends the cell and comes through.

    ``environment`` is added to the cell's. Raises PrunebenchError where no cell can be started here.
    """
    temporary = _prepare(place, starter)
    follow = Follower(EventReader(place.scratch / "events.jsonl"), moved, place.log, tick)
    result = place.scratch / "record.json"
    argv = [
        str(place.spec),
        "--record",
        str(result),
        "--events",
        str(place.scratch / "events.jsonl"),
    ]
    argv += ["--partial-results", str(place.partial_results)]
    if cell.keep_model:
        argv += ["--keep", str(place.model)]
    started = now()
    limits = Limits(cell.time_limit_s, cell.memory_limit_bytes)
    killed = kernel_kills()
    ended: ProcessExit | None = None
    try:
        surroundings = {**_surroundings(temporary), **environment}
        imports = TASK_IMPORTS if cell.tasks else ()
        ended = starter.run(
            Job(argv, place.log, limits, surroundings, follow.waited_s, imports), follow
        )
        if ended.cut is None and ended.code in (0, 1) and result.exists():
            return _with_leftovers(Record.model_validate_json(result.read_bytes()), ended)
        lost = _cause(ended, limits, starved=killed is not None and (kernel_kills() or 0) > killed)
    except ValidationError as error:
        lost = LostCell("failed", "bad record", str(error))
    except LauncherDiedError as error:
        lost = LostCell("failed", "launcher died", str(error))
        with place.log.open("a", encoding="utf-8") as file:
            file.write(error.said)
    finally:
        follow.catch_up()
        shutil.rmtree(place.scratch, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
    peak = None if ended is None else ended.peak_rss_bytes
    record = lost_record(cell, place, started, follow.phase, lost, peak)
    return record if ended is None else _with_leftovers(record, ended)


def lost_record(
    cell: Cell,
    place: CellPaths,
    started: str,
    phase: str,
    lost: LostCell,
    peak_rss_bytes: int | None = None,
) -> Record:
    """The record of a cell that could not write one itself."""
    return Record(
        id=cell.id,
        cell=cell,
        status=lost.status,
        started=started,
        finished=now(),
        error=Error(
            phase=phase,
            type=lost.kind,
            message=lost.message,
            hint=lost.hint,
            log_tail=_tail(place.log, LOG_TAIL),
            command=command(place.spec),
            peak_rss_bytes=peak_rss_bytes,
        ),
    )


def now() -> str:
    """UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cut(log: Path) -> None:
    """Keep a log from filling the disk: only its end stays where it is longer than `LOG_MOST`."""
    try:
        if log.stat().st_size > LOG_MOST:
            tail = _tail(log, LOG_KEPT)
            os.truncate(log, 0)  # the cell appends, so it goes on at the new end
            with log.open("a", encoding="utf-8") as file:
                file.write(f"... more than {LOG_MOST} bytes of output, its end:\n{tail}")
    except OSError:  # no log, or no space for one: the cell's own trouble
        return


@dataclass
class Follower:
    """Passes the cell's events on, remembers its phase and how long it waited, and keeps its log short."""

    reader: EventReader
    moved: Callable[[Event], None]
    log: Path
    tick: Callable[[], None] = ignore
    phase: str = "start"
    _since: float = field(default=0.0, init=False)
    _waited: float = field(default=0.0, init=False)

    def __call__(self) -> None:
        self.catch_up()
        self.tick()

    def catch_up(self) -> None:
        """Everything but the tick."""
        for event in self.reader.read():
            self._waited = self.waited_s()
            self._since = time.monotonic()
            self.phase = event.phase
            self.moved(event)
        cut(self.log)

    def waited_s(self) -> float:
        """Seconds that the cell has waited for others."""
        return self._waited + (time.monotonic() - self._since if self.phase == WAITING else 0.0)


def _prepare(place: CellPaths, starter: Launcher) -> str:
    """Empty folders for a cell and no log; gives the folder for its temporary files."""
    try:
        shutil.rmtree(place.scratch, ignore_errors=True)
        for folder in (place.scratch, place.log.parent, place.partial_results.parent):
            folder.mkdir(parents=True, exist_ok=True)
        place.log.unlink(missing_ok=True)
        # its name is short: sockets are made there, whose names are limited
        return tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{starter.mark[:8]}-")
    except OSError as error:
        raise PrunebenchError(
            f"no cell can be started in {place.scratch.parent.parent}: {error.strerror or error}",
            hint="free some space; what is finished is kept, the same command goes on",
        ) from error


def _cause(ended: ProcessExit, limits: Limits, *, starved: bool) -> LostCell:
    """What an end without a record means; ``starved`` where the kernel killed for want of memory meanwhile."""
    if ended.cut == "time":
        message = f"ended by the harness, the limit is {limits.time_s:g} s"
        return LostCell("timeout", "timeout", message, "`limits: {time_s: ...}` in the suite")
    if ended.cut == "memory":
        message = f"held {ended.peak_rss_bytes or 0:,} bytes of memory, the limit is {limits.memory_bytes or 0:,}"
        return LostCell(
            "out-of-memory", "memory limit", message, "`limits: {memory: ...}` in the suite"
        )
    if ended.code >= 0:
        return LostCell(
            "failed", "exit", f"the process ended with code {ended.code} and left no record"
        )
    name = _signal_name(-ended.code)
    if ended.code == -signal.SIGKILL and starved:
        return LostCell("out-of-memory", name, "killed by the kernel because memory ran out")
    if ended.code == -signal.SIGKILL:
        return LostCell("failed", name, "killed from outside; the kernel names no lack of memory")
    return LostCell("failed", name, f"the process was ended by {name}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _with_leftovers(record: Record, ended: ProcessExit) -> Record:
    """``record`` with a flag for the processes that its cell left running."""
    if not ended.left:
        return record
    flag = (
        f"left {len(ended.left)} processes running, which were ended: {'; '.join(ended.left[:3])}"
    )
    return record.model_copy(update={"flags": [*record.flags, flag]})


def _surroundings(temporary: str) -> dict[str, str]:
    """A folder of its own for temporary files, removed with the cell; compiled kernels stay where all cells find them."""
    kernels = Path(tempfile.gettempdir()) / f"torchinductor_{_user()}"
    return {
        "TMPDIR": temporary,
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(kernels)),
    }


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
