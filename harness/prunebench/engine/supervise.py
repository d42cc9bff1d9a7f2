"""Run one cell in a process on this machine, and make a record whatever happens to it."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from prunebench.callbacks import ignore
from prunebench.cell.events import Event, EventReader
from prunebench.engine.cell_log import shorten
from prunebench.engine.job import Job, Launcher, LauncherDiedError, Limits, ProcessExit
from prunebench.engine.lost_cell import LostCell, cause_of, lost_record
from prunebench.engine.memory_limit import kernel_kills
from prunebench.errors import PrunebenchError, is_full
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import WAITING
from prunebench.record.record import Record, utc_now
from prunebench.store.lock import SCRATCH_PREFIX
from prunebench.store.run_folder import RunStore

# What cells with tasks import besides torch and transformers; it takes three seconds.
TASK_IMPORTS = ("lm_eval", "lm_eval.models.huggingface", "datasets")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class CellPaths:
    """The files of one cell: its spec, and what it writes."""

    spec: Path
    scratch: Path
    """A folder that is made for the cell and removed after it."""
    log: Path
    partial_results: Path
    model: Path

    @classmethod
    def in_store(cls, store: RunStore, cell_id: str) -> CellPaths:
        """In a run folder."""
        return cls(
            spec=store.spec_path(cell_id),
            scratch=store.scratch_path / cell_id,
            log=store.log_path(cell_id),
            partial_results=store.partial_results_path(cell_id),
            model=store.model_path(cell_id),
        )

    @property
    def record(self) -> Path:
        return self.scratch / "record.json"

    @property
    def events(self) -> Path:
        return self.scratch / "events.jsonl"

    def arguments(self, cell: Cell) -> list[str]:
        """The arguments of `python -m prunebench.cell`."""
        words = [
            *(str(self.spec), "--record", str(self.record), "--events", str(self.events)),
            *("--partial-results", str(self.partial_results)),
        ]
        return [*words, "--keep", str(self.model)] if cell.keep_model else words


def run_cell_process(
    cell: Cell,
    paths: CellPaths,
    starter: Launcher,
    moved: Callable[[Event], None],
    *,
    tick: Callable[[], None] = ignore,
    environment: Mapping[str, str] = NOTHING,
) -> Record:
    """Run ``cell`` until it ends.

    ``moved`` gets its events; ``tick`` is called ten times a second. If either raises, the cell is
    ended and the exception passes through. ``environment`` is added to the cell's. Raises
    PrunebenchError if no cell can be started here.
    """
    temporary = _prepare(paths, starter)
    follow = Follower(EventReader(paths.events), moved, paths.log, tick)
    started = utc_now()
    limits = Limits(cell.time_limit_s, cell.memory_limit_bytes)
    kills = kernel_kills()
    ended: ProcessExit | None = None
    try:
        job = Job(
            argv=paths.arguments(cell),
            log=paths.log,
            limits=limits,
            environment={**_own_environment(temporary), **environment},
            waited_s=follow.waited_s,
            imports=TASK_IMPORTS if cell.tasks else (),
        )
        ended = starter.run(job, follow)
        # 0 and 1 are the codes of `prunebench.cell`. A process that ended otherwise may have left a
        # record that is not whole.
        if ended.exceeded is None and ended.code in (0, 1) and paths.record.exists():
            return _with_leftovers(Record.model_validate_json(paths.record.read_bytes()), ended)
        killed = kills is not None and (kernel_kills() or 0) > kills
        lost = cause_of(ended, limits, kernel_killed=killed)
    except ValidationError as error:
        lost = LostCell("failed", "bad record", str(error))
    except LauncherDiedError as error:
        lost = LostCell("failed", "launcher died", str(error))
        with paths.log.open("a", encoding="utf-8") as file:
            file.write(error.output)
    finally:
        follow.catch_up()
        shutil.rmtree(paths.scratch, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
    record = lost_record(
        cell,
        paths.spec,
        paths.log,
        started=started,
        phase=follow.phase,
        lost=lost,
        peak_rss_bytes=None if ended is None else ended.peak_rss_bytes,
    )
    return record if ended is None else _with_leftovers(record, ended)


@dataclass
class Follower:
    """Passes the cell's events on, tracks its phase and waiting time, and keeps its log short."""

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
        """Handle all events since the last call."""
        for event in self.reader.read():
            self._waited = self.waited_s()
            self._since = time.monotonic()
            self.phase = event.phase
            self.moved(event)
        shorten(self.log)

    def waited_s(self) -> float:
        """How many seconds the cell has waited for others."""
        return self._waited + (time.monotonic() - self._since if self.phase == WAITING else 0.0)


def _prepare(paths: CellPaths, starter: Launcher) -> str:
    """Make empty folders and remove an old log; returns a folder for the cell's temporary files."""
    try:
        shutil.rmtree(paths.scratch, ignore_errors=True)
        for folder in (paths.scratch, paths.log.parent, paths.partial_results.parent):
            folder.mkdir(parents=True, exist_ok=True)
        paths.log.unlink(missing_ok=True)
        # Not in the run folder: sockets are made there, whose paths may have about 100 characters.
        return tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{starter.mark[:8]}-")
    except OSError as error:
        raise PrunebenchError(
            f"no cell can be started in {paths.scratch.parent.parent}: {error.strerror or error}",
            hint=f"{'free some space' if is_full(error) else 'let the folder be written'}; "
            "what is finished is kept, the same command continues the run",
        ) from error


def _with_leftovers(record: Record, ended: ProcessExit) -> Record:
    """``record`` with a flag for the processes that its cell left running."""
    if not ended.left:
        return record
    flag = (
        f"left {len(ended.left)} processes running, which were ended: {'; '.join(ended.left[:3])}"
    )
    return record.model_copy(update={"flags": [*record.flags, flag]})


def _own_environment(temporary: str) -> dict[str, str]:
    """Temporary files in a folder that is removed with the cell; compiled kernels for all cells."""
    # Torch's default is inside TMPDIR, where every cell would compile its kernels again.
    kernels = Path(tempfile.gettempdir()) / f"torchinductor_{_user()}"
    return {
        "TMPDIR": temporary,
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(kernels)),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container a user may have no name
        return str(os.getuid())
