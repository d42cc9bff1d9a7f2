"""A run while it goes on: every cell gets exactly one record, and watchers are told."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from prunebench.cell.__main__ import command
from prunebench.cell.events import Event
from prunebench.engine.job import Launcher
from prunebench.engine.lost_cell import LostCell, lost_record
from prunebench.engine.supervise import CellPaths, run_cell_process
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.plugin.api.engine import Engine, EngineContext
from prunebench.record.record import Record, Status, utc_now
from prunebench.store.run_folder import RunStore

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry


def session_of(context: EngineContext) -> Session:
    """The session behind a context; the built-in engines use more of it than plugins may."""
    assert isinstance(context, Session)
    return context


class Watcher(Protocol):
    """Shows the progress of a run; several cells may run at once."""

    def started(self, cell: Cell) -> None: ...

    def moved(self, cell: Cell, event: Event) -> None: ...

    def finished(self, record: Record) -> None: ...


@dataclass
class Session(EngineContext):
    """A run, in the process that started it. All methods are called from one thread."""

    store: RunStore
    registry: Registry
    watcher: Watcher
    starter: Launcher
    most_at_once: int = field(default=0, init=False)
    """The largest number of cells that ran side by side."""
    _running: dict[str, str] = field(default_factory=dict, init=False)
    """When each running cell started, by its id."""

    def __post_init__(self) -> None:
        self.folder: Path = self.store.folder

    def run(self, engine: Engine, cells: Sequence[Cell]) -> Iterator[Record]:
        """Let ``engine`` run ``cells``, and store and yield each record.

        A cell without a record has failed. An exception, including Ctrl-C, ends what still runs.
        Raises PrunebenchError if the engine raises.
        """
        left = {cell.id: cell for cell in cells}
        records = iter(engine.run(cells, self))
        try:
            for record in _clear_errors(records, engine.name):
                cell = left.pop(getattr(record, "id", ""), None)
                if cell is None:
                    logging.getLogger("prunebench").error(
                        "the engine '%s' gave a record too many", engine.name
                    )
                    continue
                yield self._keep(cell, record)
            for cell in left.values():
                message = f"the engine '{engine.name}' gave no record of it"
                yield self._keep(
                    cell, self.lost(cell, phase="start", kind="no record", message=message)
                )
        finally:
            # Closing the engine's generator lets it end its cells. A plugin may return another
            # kind of iterator, which cannot be closed.
            close = getattr(records, "close", None)
            if close is not None:
                close()
            shutil.rmtree(self.store.scratch_path, ignore_errors=True)

    def started(self, cell: Cell) -> None:
        self._running[cell.id] = utc_now()
        self.most_at_once = max(self.most_at_once, len(self._running))
        self.watcher.started(cell)
        self.registry.notify("prunebench_cell_started", cell=cell)

    def moved(self, cell: Cell, phase: str, done: int = 0, total: int = 0, said: str = "") -> None:
        self.watcher.moved(cell, Event(phase, done, total, said))

    def run_cell(self, cell: Cell) -> Record:
        def moved(event: Event) -> None:
            self.moved(cell, event.phase, event.done, event.total, event.said)

        return run_cell_process(cell, CellPaths.in_store(self.store, cell.id), self.starter, moved)

    def record(self, cell: Cell, text: str | bytes) -> Record:
        try:
            record = Record.model_validate_json(text)
        except ValidationError as error:
            raise PrunebenchError(
                f"what cell {cell.id} gave is no record: {first_line(error)}"
            ) from error
        if record.id != cell.id or record.cell.id != cell.id:
            raise PrunebenchError(f"cell {cell.id} gave the record of cell {record.cell.id}")
        # The command names paths of the machine where the cell ran; here it has others.
        again = command(self.store.spec_path(cell.id))
        failed = record.error and record.error.model_copy(update={"command": again})
        provenance = {**record.provenance, "command": again}
        return record.model_copy(update={"error": failed, "provenance": provenance})

    def lost(
        self,
        cell: Cell,
        *,
        phase: str,
        kind: str,
        message: str,
        hint: str | None = None,
        status: Status = "failed",
    ) -> Record:
        return lost_record(
            cell,
            self.store.spec_path(cell.id),
            self.store.log_path(cell.id),
            started=self._running.get(cell.id, utc_now()),
            phase=phase,
            lost=LostCell(status, kind, message, hint),
        )

    def _keep(self, cell: Cell, record: Record) -> Record:
        if cell.id not in self._running:
            self.started(cell)
        self.store.write(record)
        # A failed cell keeps its partial results: the next run starts with them.
        if record.status == "ok":
            self.store.drop_partial_results(cell.id)
        del self._running[cell.id]
        self.registry.notify("prunebench_cell_finished", cell=cell, record=record)
        self.watcher.finished(record)
        return record


def _clear_errors(records: Iterator[Record], name: str) -> Iterator[Record]:
    """What an engine yields; its unexpected exceptions become a PrunebenchError of one sentence."""
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except PrunebenchError:
            raise
        except Exception as error:
            logging.getLogger("prunebench").debug("the engine '%s' raised", name, exc_info=True)
            raise PrunebenchError(
                f"the engine '{name}' failed: {type(error).__name__}: {first_line(error)}",
                hint="what is finished is kept; `prunebench --verbose run ...` shows where it "
                "failed, and `--engine local` runs without it",
            ) from error
        yield record
