"""Run one cell on a node of a Ray cluster, and report to the driver meanwhile.

The Ray task is not the cell's process but its supervisor: limits, orphans and kills are handled by
the same code as on the driver's own machine. Nothing here imports ray.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue

from prunebench.cell.events import Event
from prunebench.engine.launcher import launcher
from prunebench.engine.ray.messages import CellTask, Message, RunContext, travelling
from prunebench.engine.supervise import CellPaths, run_cell_process
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.isolation.timing_lock import VARIABLE as TIMING_LOCK
from prunebench.isolation.timing_lock import TimingLock, lock_folder
from prunebench.plugin import NAME
from prunebench.plugin.files import VARIABLE as PLUGIN_FILES
from prunebench.record.record import Record
from prunebench.store.lock import SCRATCH_PREFIX

PIECE_BYTES = 1_000_000
"""Logs and files are sent in pieces of this size. A log that grows faster than it is sent loses
what is further back."""
# If the driver has not taken this many messages yet, no more of the log is sent.
QUEUE_LENGTH = 100
POLL_S = 0.1


def run_on_node(context: RunContext, task: CellTask) -> Iterator[Message]:
    """Run a cell on this node; yields where it is, what happens, and the record last.

    Closing the iterator ends the cell. Raises PrunebenchError if this node cannot run it.
    """
    if (own := version(NAME)) != context.version:
        raise PrunebenchError(
            f"prunebench {own} on {socket.gethostname()}, "
            f"{context.version} where the run was started",
            hint="install the same version on every node",
        )
    cell = Cell.model_validate_json(task.cell)
    yield "at", socket.gethostname()
    with tempfile.TemporaryDirectory(
        prefix=f"{SCRATCH_PREFIX}{context.mark[:8]}-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        paths = CellPaths(
            spec=folder / f"{cell.id}.json",
            scratch=folder / "scratch",
            log=folder / "log",
            partial_results=folder / "partial.json",
            model=folder / "model",
        )
        paths.spec.write_text(task.cell, encoding="utf-8")
        if task.partial_results is not None:
            paths.partial_results.write_bytes(task.partial_results)
        with _drivers_environment(context, folder):
            work = _Work(cell, paths, f"{context.mark}-{task.number}")
            yield from work.messages()
        if cell.keep_model and paths.model.is_dir():
            for path in sorted(path for path in paths.model.rglob("*") if path.is_file()):
                for piece in _pieces(path):
                    yield "model", (path.relative_to(paths.model).as_posix(), piece)
        assert work.record is not None
        yield "record", work.record.model_dump_json(by_alias=True)


class _StoppedError(BaseException):
    """Nobody waits for this cell any more."""


class _Work:
    """Runs the cell in a thread, so that Ray can stop the task's own thread at any time."""

    def __init__(self, cell: Cell, paths: CellPaths, mark: str) -> None:
        self.record: Record | None = None
        self._cell = cell
        self._paths = paths
        self._mark = mark
        # Ends with None, or with the exception that ended the work.
        self._queue: SimpleQueue[Message | BaseException | None] = SimpleQueue()
        self._over = threading.Event()
        self._log = _Log(paths.log)
        self._partial_seen: int | None = None
        self._lock = TimingLock(lock_folder())

    def messages(self) -> Iterator[Message]:
        """Start the cell and yield its messages until it ends."""
        thread = threading.Thread(target=self._run, name="prunebench-cell", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    # With a timeout, so that Ray's cancellation, an exception that it raises in
                    # this thread, comes through.
                    message = self._queue.get(timeout=POLL_S)
                except Empty:
                    continue
                if message is None:
                    return
                if isinstance(message, BaseException):
                    raise message
                yield message
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            with closing(launcher(self._mark)) as starter, closing(self._lock):
                # Held for the cell while it imports; its imports disturb no timed phase then.
                self._lock.share(self._check)
                self.record = run_cell_process(
                    self._cell,
                    self._paths,
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
        self._queue.put(end)

    def _moved(self, event: Event) -> None:
        # From its first event on the cell holds the lock itself, or waits for it.
        self._lock.release()
        self._queue.put(("event", (event.phase, event.done, event.total, event.said)))

    def _check(self) -> None:
        if self._over.is_set():
            raise _StoppedError

    def _tick(self) -> None:
        self._check()
        self._send_news()

    def _send_news(self) -> None:
        if self._queue.qsize() < QUEUE_LENGTH and (piece := self._log.news()):
            self._queue.put(("log", piece))
        with suppress(OSError):
            changed = self._paths.partial_results.stat().st_mtime_ns
            if changed != self._partial_seen:
                self._partial_seen = changed
                self._queue.put(("partial results", self._paths.partial_results.read_bytes()))


class _Log:
    """Follows a log, which its supervisor may cut to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> bytes:
        """What was written since the last call; if that is more than a piece, its end."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:
                    self._offset = 0
                left_out = max(0, size - self._offset - PIECE_BYTES)
                file.seek(self._offset + left_out)
                data = file.read(PIECE_BYTES)
        except OSError:
            return b""
        self._offset += left_out + len(data)
        return b"... %d bytes left out\n" % left_out + data if left_out else data


def _pieces(path: Path) -> Iterator[bytes]:
    """The file in pieces; one empty piece for an empty file, so that it arrives too."""
    with path.open("rb") as file:
        yield file.read(PIECE_BYTES)
        while piece := file.read(PIECE_BYTES):
            yield piece


@contextmanager
def _drivers_environment(context: RunContext, folder: Path) -> Iterator[None]:
    """Give this process the driver's variables and the run's plugin files while the block runs."""
    files = []
    for number, (name, content) in enumerate(context.plugins):
        # A folder for each: two files may have the same name.
        path = folder / "plugins" / str(number) / Path(name).name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        files.append(str(path))
    before = dict(os.environ)
    for name in travelling(before):
        del os.environ[name]
    os.environ.update(context.environment)
    if files:
        os.environ[PLUGIN_FILES] = os.pathsep.join(files)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
