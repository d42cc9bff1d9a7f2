"""What runs on a node of a Ray cluster: one cell, as the local engine would run it, told to the driver as it goes.

A Ray task is not the cell itself but its keeper there: limits, orphans, memory and kills are held by the same code as
on the driver's own machine. Nothing here imports ray.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from prunebench.cell.events import Event
from prunebench.engine.launcher import launcher
from prunebench.engine.supervise import CellPaths, run_cell_process
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import VARIABLE as TIMING_LOCK
from prunebench.isolation.timing_lock import TimingLock, lock_folder
from prunebench.plugin import NAME
from prunebench.plugin.files import VARIABLE as PLUGIN_FILES
from prunebench.record.record import Record
from prunebench.store.lock import SCRATCH_PREFIX

TRAVELS = (
    "PRUNEBENCH_",
    "HF_",
    "TRANSFORMERS_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "TORCH_",
    "PYTORCH_",
    "TOKENIZERS_",
)
"""Beginnings of the names of variables that a cell has from the driver; Ray sets some of them to its own liking."""
PIECE = 1_000_000
"""Bytes of a log or a file that are sent at once; a log that grows faster than it is sent loses what lies further back."""
WAITING = 100
"""With so many messages that nobody has taken yet, the log has to wait."""

Kind = Literal["at", "event", "log", "partial results", "model", "record"]
Message = tuple[Kind, Any]
"""('at', host name), ('event', (phase, done, total)), ('log' or 'partial results', bytes), ('model', (file, bytes)), ('record', JSON)."""


@dataclass(frozen=True)
class RunContext:
    """What all cells of a run bring along."""

    version: str
    mark: str
    environment: Mapping[str, str]
    plugins: tuple[tuple[str, bytes], ...]
    """Names and contents of plugins that are single files: the node need not have them."""


@dataclass(frozen=True)
class CellTask:
    """One cell, as JSON, and the stages of it that an earlier run has finished."""

    cell: str
    number: int
    partial_results: bytes | None = None


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a cell has from the driver."""
    return {name: value for name, value in environment.items() if name.startswith(TRAVELS)}


def keep_cell(baggage: RunContext, errand: CellTask) -> Iterator[Message]:
    """Run a cell on this node and tell of it: where it is, all that happens, the record last.

    Raises PrunebenchError where this node cannot run it; closing the iterator ends the cell.
    """
    if (own := version(NAME)) != baggage.version:
        raise PrunebenchError(
            f"prunebench {own} on {socket.gethostname()}, {baggage.version} where the run was started",
            hint="install the same version on every node",
        )
    cell = Cell.model_validate_json(errand.cell)
    yield "at", socket.gethostname()
    with tempfile.TemporaryDirectory(
        prefix=f"{SCRATCH_PREFIX}{baggage.mark[:8]}-", ignore_cleanup_errors=True
    ) as name:
        base = Path(name)
        place = CellPaths(
            spec=base / f"{cell.id}.json",
            scratch=base / "scratch",
            log=base / "log",
            partial_results=base / "partial.json",
            model=base / "model",
        )
        place.spec.write_text(errand.cell, encoding="utf-8")
        if errand.partial_results is not None:
            place.partial_results.write_bytes(errand.partial_results)
        with _surroundings(baggage, base):
            work = _Work(cell, place, f"{baggage.mark}-{errand.number}")
            yield from work.told()
        if cell.keep_model and place.model.is_dir():
            for path in sorted(path for path in place.model.rglob("*") if path.is_file()):
                for piece in _pieces(path):
                    yield "model", (path.relative_to(place.model).as_posix(), piece)
        assert work.record is not None
        yield "record", work.record.model_dump_json(by_alias=True)


class _StoppedError(BaseException):
    """Nobody waits for this cell any more."""


class _Work:
    """The cell in a thread, so that the task itself can be told to stop at any time."""

    def __init__(self, cell: Cell, place: CellPaths, mark: str) -> None:
        self.record: Record | None = None
        self._cell = cell
        self._place = place
        self._mark = mark
        self._said: SimpleQueue[Message | BaseException | None] = SimpleQueue()
        self._over = threading.Event()
        self._log = _Log(place.log)
        self._partial_seen: int | None = None
        self._lock = TimingLock(lock_folder())

    def told(self) -> Iterator[Message]:
        """Run it, and give what it says until it has ended."""
        thread = threading.Thread(target=self._run, name="prunebench-cell", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    said = self._said.get(timeout=0.1)
                except Empty:
                    continue
                if said is None:
                    return
                if isinstance(said, BaseException):
                    raise said
                yield said
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            with closing(launcher(self._mark)) as starter, closing(self._lock):
                self._lock.share(
                    self._check
                )  # what is imported before its first phase disturbs nobody who is timed
                self.record = run_cell_process(
                    self._cell,
                    self._place,
                    starter,
                    self._moved,
                    tick=self._tick,
                    environment={TIMING_LOCK: str(lock_folder())},
                )
            self._send_news()
        except _StoppedError:
            pass
        except BaseException as error:
            end = error
        self._said.put(end)

    def _moved(self, event: Event) -> None:
        self._lock.release()  # the cell has a place of its own, or waits for one
        self._said.put(("event", (event.phase, event.done, event.total)))

    def _check(self) -> None:
        if self._over.is_set():
            raise _StoppedError

    def _tick(self) -> None:
        self._check()
        self._send_news()

    def _send_news(self) -> None:
        if self._said.qsize() < WAITING and (piece := self._log.news()):
            self._said.put(("log", piece))
        with suppress(OSError):
            changed = self._place.partial_results.stat().st_mtime_ns
            if changed != self._partial_seen:
                self._partial_seen = changed
                self._said.put(("partial results", self._place.partial_results.read_bytes()))


class _Log:
    """Follows a log that may be cut to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> bytes:
        """What has come since the last call; of much, the end."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:
                    self._offset = 0
                left_out = max(0, size - self._offset - PIECE)
                file.seek(self._offset + left_out)
                data = file.read(PIECE)
        except OSError:
            return b""
        self._offset += left_out + len(data)
        return b"... %d bytes left out\n" % left_out + data if left_out else data


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(PIECE)
        while piece := file.read(PIECE):
            yield piece


@contextmanager
def _surroundings(baggage: RunContext, base: Path) -> Iterator[None]:
    """Within, this process has the driver's variables and the run's plugin files."""
    files = []
    for number, (name, content) in enumerate(baggage.plugins):
        path = base / "plugins" / str(number) / Path(name).name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        files.append(str(path))
    before = dict(os.environ)
    for name in travelling(before):
        del os.environ[name]
    os.environ.update(baggage.environment)
    if files:
        os.environ[PLUGIN_FILES] = os.pathsep.join(files)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
