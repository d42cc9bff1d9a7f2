"""A run on disk: a folder with the suite as given, the plan, one record and one log a cell, and the report."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.record.codec import UnreadableRecordError, from_json, to_json
from prunebench.record.expectations import Expectation
from prunebench.record.record import SCHEMA, Record
from prunebench.store.lock import NAME as LOCK_NAME
from prunebench.store.lock import Owner, hold


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write ``text`` so that a reader sees the old file or the whole new one, also after a power cut.

    Where ``durable`` is False a power cut may leave an empty file: for what is written again on the next occasion.
    Raises PrunebenchError where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
            if durable:
                _sync_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or choose another folder with --out; what is finished is kept",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name last, too; some file systems cannot, and need not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Plan:
    """What a run folder is about to hold: the suite's name, its cells in order, and when it was made."""

    suite: str
    title: str
    cells: tuple[Cell, ...]
    suite_sha256: str
    gate: float = 0.95
    expect: tuple[Expectation, ...] = ()
    """Published figures of these cells."""


@dataclass(frozen=True)
class DamagedRecord:
    """A record file that cannot be used, and why."""

    path: Path
    reason: str


class RunStore:
    """A run folder. Reading never writes; `create` and the `write_*` methods do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- paths

    @property
    def plan_path(self) -> Path:
        return self.folder / "plan.json"

    @property
    def suite_path(self) -> Path:
        return self.folder / "suite.yaml"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    def record_path(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.json"

    def log_path(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.log"

    def spec_path(self, cell_id: str) -> Path:
        return self.folder / "specs" / f"{cell_id}.json"

    @property
    def scratch_path(self) -> Path:
        """For files that live as long as a run."""
        return self.folder / "scratch"

    def stages_path(self, cell_id: str) -> Path:
        """Results of a cell that has not ended yet."""
        return self.folder / "cells" / f"{cell_id}.stages.json"

    def model_path(self, cell_id: str) -> Path:
        return self.folder / "models" / cell_id

    @contextmanager
    def lock(self, mark: str = "") -> Iterator[Owner | None]:
        """Hold the folder for one run, see `prunebench.store.lock`; ``mark`` is what the run's processes carry.

        Files that a killed run had not finished writing are removed. Raises PrunebenchError where another run holds it.
        """
        with hold(self.folder, mark) as former:
            for folder in (self.folder, self.record_path("").parent, self.spec_path("").parent):
                for path in folder.glob(".*.json.*") if folder.is_dir() else ():
                    path.unlink(missing_ok=True)
            shutil.rmtree(self.scratch_path, ignore_errors=True)
            yield former

    # -- the plan

    @classmethod
    def check(cls, folder: Path, suite: str) -> RunStore:
        """The store in ``folder``, which is or can become a run of ``suite``; nothing is written.

        Raises PrunebenchError where the folder holds something else or another suite's run.
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
        """Make ``folder`` a run of this suite, or go on with it. Raises PrunebenchError as `check` does."""
        store = cls.check(folder, plan.suite)
        write_atomically(store.suite_path, suite_text)
        for cell in plan.cells:
            write_atomically(
                store.spec_path(cell.id), cell.model_dump_json(indent=1) + "\n", durable=False
            )
        data = {
            "schema": SCHEMA,
            "suite": plan.suite,
            "title": plan.title,
            "suite_sha256": plan.suite_sha256,
            "gate": plan.gate,
            "expect": [figure.model_dump(mode="json") for figure in plan.expect],
            "cells": [{"id": cell.id, "cell": cell.model_dump(mode="json")} for cell in plan.cells],
        }
        write_atomically(store.plan_path, json.dumps(data, indent=1) + "\n")
        return store

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """An existing run folder. Raises PrunebenchError where it is none."""
        store = cls(folder)
        if not store.plan_path.is_file():
            raise PrunebenchError(
                f"{folder} is not a run of prunebench: it has no plan.json",
                hint="name a folder that `prunebench run` wrote",
            )
        return store

    def _planned_suite(self) -> str | None:
        """The suite of the plan; None where that is damaged: then it is written anew, records are found by their ids."""
        try:
            return self.read_plan().suite
        except PrunebenchError:
            return None

    def read_plan(self) -> Plan:
        try:
            data: dict[str, Any] = json.loads(self.plan_path.read_text(encoding="utf-8"))
            return Plan(
                suite=data["suite"],
                title=data["title"],
                cells=tuple(Cell.model_validate(entry["cell"]) for entry in data["cells"]),
                suite_sha256=data["suite_sha256"],
                gate=data["gate"],
                expect=tuple(
                    Expectation.model_validate(figure) for figure in data.get("expect", [])
                ),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrunebenchError(
                f"{self.plan_path} cannot be read: {first_line(error)}",
                hint="run the suite again with the same --out: finished cells are kept",
            ) from error

    # -- records

    def write(self, record: Record) -> None:
        """Store a record; a file in its place that is no record stays beside it, with the ending `.damaged`."""
        path = self.record_path(record.id)
        if isinstance(self.read(record.id), DamagedRecord):
            with suppress(OSError):
                path.replace(path.with_suffix(".json.damaged"))
        write_atomically(path, to_json(record))

    def read(self, cell_id: str) -> Record | DamagedRecord | None:
        """The record of a cell; None where there is none, DamagedRecord where the file is no record of this cell."""
        path = self.record_path(cell_id)
        try:
            record = from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except UnreadableRecordError as error:
            return DamagedRecord(path, str(error))
        except (OSError, UnicodeDecodeError) as error:
            return DamagedRecord(path, first_line(error))
        if record.id != cell_id or record.cell.id != cell_id:
            return DamagedRecord(path, f"holds the record of cell {record.cell.id}")
        return record

    def records(
        self, cells: Iterable[Cell] | None = None
    ) -> tuple[list[Record], list[DamagedRecord]]:
        """The records of these cells (the plan's where not given), in that order, and the damaged files."""
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
        """Whether this experiment has a result that need not be run again."""
        found = self.read(cell.id)
        return isinstance(found, Record) and found.status == "ok"
