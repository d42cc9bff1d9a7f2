"""A run on disk: the suite, the plan, one record and one log per cell, and the report."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.isolation.garbage import no_collection
from prunebench.record.codec import UnreadableRecordError, from_json, to_json
from prunebench.record.record import Record
from prunebench.store.atomic import write_atomically
from prunebench.store.lock import NAME as LOCK_NAME
from prunebench.store.lock import Owner, hold
from prunebench.store.plan_file import Plan, read_plan, write_plan
from prunebench.user_path import user_path

# The names that `write_atomically` gives its temporary files.
_HALF_WRITTEN = re.compile(
    r"\.(plan\.json|suite\.yaml|report\.html|[0-9a-f]+(\.partial)?\.json)\.[a-z0-9_]{8}"
)


@dataclass(frozen=True)
class DamagedRecord:
    """A record file that cannot be used, and why."""

    path: Path
    reason: str


class RunStore:
    """The files of a run folder. Only `create`, `lock` and `write` change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def plan_path(self) -> Path:
        return self.folder / "plan.json"

    @property
    def suite_path(self) -> Path:
        return self.folder / "suite.yaml"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @property
    def scratch_path(self) -> Path:
        """For files that are deleted when the run ends."""
        return self.folder / "scratch"

    def spec_path(self, cell_id: str) -> Path:
        """The cell itself, which `python -m prunebench.cell` runs again."""
        return self.folder / "specs" / f"{cell_id}.json"

    def record_path(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.json"

    def log_path(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.log"

    def partial_results_path(self, cell_id: str) -> Path:
        """What a cell has measured so far; deleted when it has a record."""
        return self.folder / "cells" / f"{cell_id}.partial.json"

    def drop_partial_results(self, cell_id: str) -> None:
        """Delete what an unfinished cell keeps, and the states of its trainings."""
        path = self.partial_results_path(cell_id)
        path.unlink(missing_ok=True)
        shutil.rmtree(training_folder(path), ignore_errors=True)

    def model_path(self, cell_id: str) -> Path:
        return self.folder / "models" / cell_id

    @contextmanager
    def lock(self, mark: str = "") -> Iterator[Owner | None]:
        """Hold the folder for one run, see `prunebench.store.lock`.

        ``mark`` identifies the run's processes. Files that a killed run left half written are
        removed. Raises PrunebenchError if another run holds the folder.
        """
        with hold(self.folder, mark) as former:
            for folder in (self.folder, self.record_path("").parent, self.spec_path("").parent):
                for path in folder.iterdir() if folder.is_dir() else ():
                    if _HALF_WRITTEN.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            shutil.rmtree(self.scratch_path, ignore_errors=True)
            yield former

    @classmethod
    def check(cls, folder: Path, suite: str) -> RunStore:
        """The store in ``folder``, if that is or can become a run of ``suite``; writes nothing.

        Raises PrunebenchError if the folder holds something else or another suite's run.
        """
        store = cls(folder)
        if folder.exists() and not folder.is_dir():
            raise PrunebenchError(
                f"{folder} is a file, not a run folder", hint="choose another folder with --out"
            )
        if store.plan_path.exists():
            other = store._planned_suite()
            if other not in (None, suite):
                raise PrunebenchError(
                    f"{folder} belongs to the suite '{other}', not to '{suite}'",
                    hint="choose another folder with --out",
                )
        elif folder.exists() and any(path.name != LOCK_NAME for path in folder.iterdir()):
            raise PrunebenchError(
                f"{folder} is not a run of prunebench (it has no plan.json) and is not empty",
                hint="choose another folder with --out",
            )
        return store

    @classmethod
    def create(cls, folder: Path, plan: Plan, suite_text: str) -> RunStore:
        """Make ``folder`` a run of this plan, or continue it. Raises as `check` does."""
        store = cls.check(folder, plan.suite)
        write_atomically(store.suite_path, suite_text)
        for cell in plan.cells:
            write_atomically(
                store.spec_path(cell.id), cell.model_dump_json(indent=1) + "\n", durable=False
            )
        # Last: a folder without a plan is no run yet.
        write_plan(store.plan_path, plan)
        return store

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """An existing run folder. Raises PrunebenchError if it is none."""
        hint = "name a folder that `prunebench run` wrote"
        store = cls(user_path(folder, what="the run folder", hint=hint))
        if not store.plan_path.is_file():
            raise PrunebenchError(
                f"{folder} is not a run of prunebench: it has no plan.json", hint=hint
            )
        return store

    def _planned_suite(self) -> str | None:
        """The suite of the plan; None if the plan is damaged.

        A damaged plan is simply written again: records are found by the ids of their cells.
        """
        try:
            return self.read_plan().suite
        except PrunebenchError:
            return None

    def read_plan(self) -> Plan:
        """Raises PrunebenchError if the plan is missing or damaged."""
        return read_plan(self.plan_path)

    def write(self, record: Record) -> None:
        """Store a record; a damaged file in its place is renamed to end in `.damaged`."""
        path = self.record_path(record.id)
        if isinstance(self.read(record.id), DamagedRecord):
            with suppress(OSError):
                path.replace(_free_name(path.with_suffix(".json.damaged")))
        write_atomically(path, to_json(record))

    def read(self, cell_id: str) -> Record | DamagedRecord | None:
        """The record of a cell; None if there is none, DamagedRecord if the file cannot be used."""
        path = self.record_path(cell_id)
        try:
            record = from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except UnreadableRecordError as error:
            return DamagedRecord(path, str(error))
        except (OSError, UnicodeDecodeError) as error:
            return DamagedRecord(path, first_line(error))
        # A copied or renamed file would report one experiment under the name of another.
        if record.id != cell_id:
            return DamagedRecord(path, f"holds the record of cell {record.id!r}")
        return record

    @no_collection()
    def records(
        self, cells: Iterable[Cell] | None = None
    ) -> tuple[list[Record], list[DamagedRecord]]:
        """The records of ``cells`` (default: the plan's) in that order, and the damaged files."""
        good: list[Record] = []
        bad: list[DamagedRecord] = []
        for cell in self.read_plan().cells if cells is None else cells:
            found = self.read(cell.id)
            if isinstance(found, Record):
                good.append(found)
            elif found is not None:
                bad.append(found)
        return good, bad

    def finished(self, cell: Cell) -> bool:
        """Whether the cell has a result, so that it need not run again."""
        found = self.read(cell.id)
        return isinstance(found, Record) and found.status == "ok"


def training_folder(partial_results: Path) -> Path:
    """Where the trainings of a cell keep their state, beside the file of its partial results."""
    return partial_results.with_suffix(".training")


def _free_name(path: Path) -> Path:
    """``path``, or if there is such a file, the first of PATH-2, PATH-3 ... that there is not."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
