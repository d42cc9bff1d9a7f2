"""Hand the cells to Ray, take their messages, and make a record of every end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from prunebench.engine.cell_log import shorten
from prunebench.engine.lost_cell import LostCell
from prunebench.engine.ray.agent import run_on_node
from prunebench.engine.ray.cluster import Needs, living_nodes
from prunebench.engine.ray.messages import CellTask, Message, RunContext, travelling
from prunebench.engine.session import Session
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.plugin import NAME
from prunebench.plugin.files import plugin_files
from prunebench.record.record import Record
from prunebench.store.atomic import write_atomically

POLL_S = 1.0
# Messages of one cell that are taken before the other cells get their turn.
BATCH = 64
# Messages that Ray holds back for us before a task has to wait.
BACKPRESSURE = 64
# How long cancelled agents may take to end their cells before they are killed.
CANCEL_S = 10.0
AGAIN = "`prunebench run` with the same options runs it again"


@dataclass
class _Task:
    """A cell that was handed to Ray, and what is known of it."""

    cell: Cell
    needs: Needs
    host: str | None = None
    node_id: str | None = None
    phase: str = "start"
    record: Record | None = None
    no_room_since: float | None = None


class Driver:
    """Runs cells on the cluster that ``ray`` is connected to.

    A cell fails if no living node has had room for it for ``patience_s`` seconds.
    """

    def __init__(self, ray: Any, session: Session, patience_s: float) -> None:
        self._ray = ray
        self._session = session
        self._store = session.store
        self._patience_s = patience_s
        # The stream of messages of each task that has not ended.
        self._tasks: dict[Any, _Task] = {}
        self._room_checked = 0.0

    def run(self, cells: Sequence[tuple[Cell, Needs]]) -> Iterator[Record]:
        """Yield the records as the cells end; when this generator ends, so do all tasks."""
        # Stored once in the cluster, not sent with every task.
        context = self._ray.put(
            RunContext(
                version(NAME),
                self._session.starter.mark,
                travelling(os.environ),
                tuple((file.path.name, file.path.read_bytes()) for file in plugin_files()),
            )
        )
        remote = self._ray.remote(_task)
        try:
            for number, (cell, needs) in enumerate(cells, 1):
                task = CellTask(
                    cell.model_dump_json(),
                    number,
                    _content(self._store.partial_results_path(cell.id)),
                )
                stream = remote.options(
                    num_cpus=needs.cpus,
                    num_gpus=needs.gpus,
                    memory=needs.memory_bytes,
                    # A cell that was lost is a failed record; the user decides whether to repeat.
                    max_retries=0,
                    num_returns="streaming",
                    name=f"prunebench {cell.id}",
                    _generator_backpressure_num_objects=BACKPRESSURE,
                ).remote(context, task)
                self._tasks[stream] = _Task(cell, needs)
            while self._tasks:
                ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL_S)
                for stream in ready:
                    if (record := self._receive(stream)) is not None:
                        yield record
                yield from self._without_room()
        finally:
            self._cancel()

    def _receive(self, stream: Any) -> Record | None:
        """Take the messages that have arrived; the task's record if it has ended."""
        task = self._tasks[stream]
        try:
            for _ in range(BATCH):
                if not self._ray.wait([stream], timeout=0)[0]:
                    break
                self._take(task, self._ray.get(next(stream)))
        except StopIteration:
            record = task.record or self._lost(
                task, LostCell("failed", "no record", "its task ended without one")
            )
        except self._ray.exceptions.RayError as error:
            # A task that fails after it has sent its record has done its work.
            record = task.record or self._lost(task, self._cause(task, error))
        except PrunebenchError as error:
            self._ray.cancel(stream)
            lost = LostCell("failed", "bad message", error.message, error.hint)
            record = self._lost(task, lost)
        else:
            return None
        del self._tasks[stream]
        return record

    def _take(self, task: _Task, message: Message) -> None:
        """Handle one message. Raises PrunebenchError if it is not what an agent sends."""
        kind, content = message
        cell = task.cell
        log, model = self._store.log_path(cell.id), self._store.model_path(cell.id)
        # The model gets its name when it is complete.
        incomplete = model.with_name(f".{model.name}.part")
        if kind == "at":
            task.host, task.node_id = content
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            shutil.rmtree(incomplete, ignore_errors=True)
            self._session.started(cell)
        elif kind == "event":
            task.phase = content[0]
            self._session.moved(cell, *content)
        elif kind == "log":
            _append(log, content)
            shorten(log)
        elif kind == "partial results":
            path = self._store.partial_results_path(cell.id)
            write_atomically(path, content.decode(), durable=False)
        elif kind == "model":
            _append(incomplete / _inside(content[0]), content[1])
        else:
            record = self._session.record(cell, content)
            where = {"engine": "ray", "node": task.host}
            task.record = record.model_copy(update={"provenance": {**record.provenance, **where}})
            if incomplete.exists():
                shutil.rmtree(model, ignore_errors=True)
                incomplete.replace(model)

    def _cause(self, task: _Task, error: Exception) -> LostCell:
        """What one of Ray's exceptions means for a cell."""
        known = self._ray.exceptions
        cause = getattr(error, "cause", None)
        where = f"the node {task.host}" if task.host else "its node"
        if isinstance(error, known.OutOfMemoryError):
            message = f"Ray ended it because {where} ran out of memory"
            hint = "`limits: {memory: ...}` in the suite"
            return LostCell("out-of-memory", "node's memory", message, hint)
        if isinstance(cause, PrunebenchError):
            return LostCell("failed", "node", cause.message, cause.hint)
        if isinstance(error, known.RayTaskError):
            message = (
                f"{where} could not run it: {type(cause).__name__}: {first_line(cause or error)}"
            )
            hint = "the same prunebench must be installed on every node"
            return LostCell("failed", "node", message, hint)
        # Ray may report only a dead worker although its whole node is gone.
        alive = task.node_id in {node.id for node in living_nodes(self._ray)}
        if alive and not isinstance(error, known.NodeDiedError):
            message = f"the process that supervised it on {where} ended: {first_line(error)}"
            return LostCell("failed", "worker lost", message, AGAIN)
        when = " while it ran there" if task.host else ""
        return LostCell("failed", "node lost", f"{where} left the cluster{when}", AGAIN)

    def _lost(self, task: _Task, lost: LostCell) -> Record:
        return self._session.lost(
            task.cell,
            phase=task.phase,
            kind=lost.kind,
            message=lost.message,
            hint=lost.hint,
            status=lost.status,
        )

    def _without_room(self) -> Iterator[Record]:
        """Records of cells that no living node has had room for, for too long.

        Ray itself would let them wait for ever.
        """
        now = time.monotonic()
        if now - self._room_checked < POLL_S:
            return
        self._room_checked = now
        nodes = living_nodes(self._ray)
        for stream, task in list(self._tasks.items()):
            if task.host is not None or any(task.needs.fit(node) for node in nodes):
                task.no_room_since = None
                continue
            task.no_room_since = task.no_room_since or now
            if now - task.no_room_since >= self._patience_s:
                self._ray.cancel(stream)
                del self._tasks[stream]
                message = f"no node is left with {task.needs}"
                yield self._lost(
                    task, LostCell("failed", "no node", message, f"add nodes; {AGAIN}")
                )

    def _cancel(self) -> None:
        """End all tasks: first ask, so that agents can end their cells, then kill."""
        for force in (False, True):
            for stream in self._tasks:
                self._ray.cancel(stream, force=force)
            deadline = time.monotonic() + CANCEL_S
            while self._tasks and time.monotonic() < deadline:
                for stream in self._ray.wait(list(self._tasks), num_returns=1, timeout=0.1)[0]:
                    _drop_if_ended(self._ray, stream, self._tasks.pop)


def _task(context: RunContext, task: CellTask) -> Iterator[Message]:
    """The function that Ray runs on a node."""
    from prunebench.engine.ray.cluster import import_ray

    own_id = import_ray().get_runtime_context().get_node_id()
    for kind, content in run_on_node(context, task):
        yield kind, ((content, own_id) if kind == "at" else content)


def _drop_if_ended(ray: Any, stream: Any, drop: Callable[[Any], Any]) -> None:
    # A stream that is ready may hold a message; it is taken and ignored.
    try:
        ray.get(next(stream))
    except (StopIteration, ray.exceptions.RayError):
        drop(stream)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def _inside(name: str) -> PurePosixPath:
    """A relative file name. Raises PrunebenchError if it leads out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PrunebenchError(f"a node sent a file called '{name}'")
    return path
