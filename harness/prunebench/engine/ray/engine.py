"""The Ray engine: cells as tasks of a Ray cluster, with the GPUs, CPUs and memory that they need declared."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from prunebench.engine.ray.agent import CellTask, Message, RunContext, keep_cell, travelling
from prunebench.engine.ray.cluster import Needs, joined, living, needs_of
from prunebench.engine.session import Session, session_of
from prunebench.engine.supervise import cut
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.plugin import NAME
from prunebench.plugin.api import method
from prunebench.plugin.api.engine import Engine, EngineContext
from prunebench.plugin.files import plugin_files
from prunebench.record.record import Record, Status
from prunebench.store.atomic import write_atomically
from prunebench.store.lock import clean_up
from prunebench.store.run_folder import RunStore

LOOK_S = 1.0
AT_ONCE = 64
"""Messages of one cell before the others are heard."""
CANCEL_S = 10.0
AGAIN = "`prunebench run` with the same options runs it again"


class RayEngine(Engine):
    """Cells as tasks of a Ray cluster, a local one where no address is given; a lost node is a failed row."""

    name = "ray"

    class Options(method.Options):
        address: str | None = Field(
            None,
            description="of a running cluster, HOST:PORT or auto; RAY_ADDRESS where absent, else one is started here",
        )
        patience_s: float = Field(
            60.0,
            ge=0,
            description="a cell that no living node has room for has failed after so many seconds",
        )

    def run(self, cells: Sequence[Cell], context: EngineContext) -> Iterator[Record]:
        if not cells:
            return
        try:
            yield from self._run(cells, session_of(context))
        finally:
            clean_up(
                session_of(context).starter.mark
            )  # a keeper that Ray ended in the middle could not do it itself

    def _run(self, cells: Sequence[Cell], context: Session) -> Iterator[Record]:
        with joined(self.options.address or os.environ.get("RAY_ADDRESS") or None) as ray:
            nodes = living(ray)
            wanted = [(cell, needs_of(cell, nodes)) for cell in cells]
            for cell, needs in wanted:
                if not any(needs.fit(node) for node in nodes):
                    raise PrunebenchError(
                        f"{cell.label} needs a node with {needs}, and none of the {len(nodes)} has that",
                        hint="change `gpus:`, `threads:` or `limits: {memory: ...}` of the suite, or add nodes",
                    )
            yield from _Drive(ray, context, self.options.patience_s).run(wanted)


@dataclass
class _Task:
    """A cell on the way: its stream of messages and what is known of it."""

    cell: Cell
    needs: Needs
    host: str | None = None
    node_id: str | None = None
    phase: str = "start"
    record: Record | None = None
    homeless_since: float | None = None


class _Drive:
    """The driver's side: hands the cells out, hears from all, makes a record of every end."""

    def __init__(self, ray: Any, context: Session, patience_s: float) -> None:
        self._ray = ray
        self._context = context
        self._store = RunStore(context.folder)
        self._patience_s = patience_s
        self._tasks: dict[Any, _Task] = {}
        self._looked = 0.0

    def run(self, wanted: Sequence[tuple[Cell, Needs]]) -> Iterator[Record]:
        """Give the records as the cells end; whatever ends this ends the tasks."""
        baggage = self._ray.put(
            RunContext(
                version(NAME),
                self._context.starter.mark,
                travelling(os.environ),
                tuple((file.path.name, file.path.read_bytes()) for file in plugin_files()),
            )
        )
        task = self._ray.remote(_task)
        try:
            for number, (cell, needs) in enumerate(wanted, 1):
                errand = CellTask(
                    cell.model_dump_json(),
                    number,
                    _content(self._store.partial_results_path(cell.id)),
                )
                stream = task.options(
                    num_cpus=needs.cpus,
                    num_gpus=needs.gpus,
                    memory=needs.memory_bytes,
                    max_retries=0,
                    num_returns="streaming",
                    name=f"prunebench {cell.id}",
                    _generator_backpressure_num_objects=64,
                ).remote(baggage, errand)
                self._tasks[stream] = _Task(cell, needs)
            while self._tasks:
                ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=LOOK_S)
                for stream in ready:
                    if (record := self._hear(stream)) is not None:
                        yield record
                yield from self._homeless()
        finally:
            self._cancel()

    def _hear(self, stream: Any) -> Record | None:
        """Take all that a task has said; its record where it has ended."""
        task = self._tasks[stream]
        try:
            for _ in range(AT_ONCE):
                if not self._ray.wait([stream], timeout=0)[0]:
                    break
                self._take(task, self._ray.get(next(stream)))
        except StopIteration:
            record = task.record or self._lost(
                task, "failed", "no record", "its task ended without one"
            )
        except self._ray.exceptions.RayError as error:
            record = task.record or self._end(task, error)
        except PrunebenchError as error:
            self._ray.cancel(stream)
            record = self._lost(task, "failed", "bad message", error.message, error.hint)
        else:
            return None
        del self._tasks[stream]
        return record

    def _take(self, task: _Task, message: Message) -> None:
        kind, what = message
        cell = task.cell
        log, model = self._store.log_path(cell.id), self._store.model_path(cell.id)
        aside = model.with_name(f".{model.name}.part")
        if kind == "at":
            task.host, task.node_id = what
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            self._context.started(cell)
        elif kind == "event":
            task.phase = what[0]
            self._context.moved(cell, *what)
        elif kind == "log":
            _append(log, what)
            cut(log)
        elif kind == "partial results":
            write_atomically(
                self._store.partial_results_path(cell.id), what.decode(), durable=False
            )
        elif kind == "model":
            _append(aside / _inside(what[0]), what[1])
        else:
            record = self._context.record(cell, what)
            where = {"engine": RayEngine.name, "node": task.host}
            task.record = record.model_copy(update={"provenance": {**record.provenance, **where}})
            if aside.exists():
                shutil.rmtree(model, ignore_errors=True)
                aside.replace(model)

    def _end(self, task: _Task, error: Exception) -> Record:
        """What an error of Ray's says of a cell."""
        known = self._ray.exceptions
        cause = getattr(error, "cause", None)
        where = f"the node {task.host}" if task.host else "its node"
        if isinstance(error, known.OutOfMemoryError):
            message = f"Ray ended it because {where} ran out of memory"
            return self._lost(
                task,
                "out-of-memory",
                "node's memory",
                message,
                "`limits: {memory: ...}` in the suite",
            )
        if isinstance(cause, PrunebenchError):
            return self._lost(task, "failed", "node", cause.message, cause.hint)
        if isinstance(error, known.RayTaskError):
            message = (
                f"{where} could not run it: {type(cause).__name__}: {first_line(cause or error)}"
            )
            return self._lost(
                task,
                "failed",
                "node",
                message,
                "the same prunebench must be installed on every node",
            )
        if task.node_id in {node.id for node in living(self._ray)} and not isinstance(
            error, known.NodeDiedError
        ):
            message = f"the process that kept it on {where} ended: {first_line(error)}"
            return self._lost(task, "failed", "worker lost", message, AGAIN)
        message = (
            f"{where} left the cluster while it ran there"
            if task.host
            else f"{where} left the cluster"
        )
        return self._lost(task, "failed", "node lost", message, AGAIN)

    def _lost(
        self, task: _Task, status: Status, kind: str, message: str, hint: str | None = None
    ) -> Record:
        return self._context.lost(
            task.cell, phase=task.phase, kind=kind, message=message, hint=hint, status=status
        )

    def _homeless(self) -> Iterator[Record]:
        """Records of cells that wait in vain: no living node has room for them, and has not for too long."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        nodes = living(self._ray)
        for stream, task in list(self._tasks.items()):
            if task.host is not None or any(task.needs.fit(node) for node in nodes):
                task.homeless_since = None
                continue
            task.homeless_since = task.homeless_since or now
            if now - task.homeless_since >= self._patience_s:
                self._ray.cancel(stream)
                del self._tasks[stream]
                message = f"no node is left with {task.needs}"
                yield self._lost(task, "failed", "no node", message, f"add nodes; {AGAIN}")

    def _cancel(self) -> None:
        """End what still runs, and wait for its keepers to clean up; one that does not is killed."""
        for force in (False, True):
            for stream in self._tasks:
                self._ray.cancel(stream, force=force)
            deadline = time.monotonic() + CANCEL_S
            while self._tasks and time.monotonic() < deadline:
                for stream in self._ray.wait(list(self._tasks), num_returns=1, timeout=0.1)[0]:
                    _drop_if_ended(self._ray, stream, self._tasks.pop)


def _task(baggage: RunContext, errand: CellTask) -> Iterator[Message]:
    """A Ray task: the keeper of one cell."""
    from prunebench.engine.ray.cluster import import_ray

    own = import_ray().get_runtime_context().get_node_id()
    for kind, what in keep_cell(baggage, errand):
        yield kind, ((what, own) if kind == "at" else what)


def _drop_if_ended(ray: Any, stream: Any, drop: Callable[[Any], Any]) -> None:
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
    """A file's name, refused where it leads out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PrunebenchError(f"a node sent a file called '{name}'")
    return path
