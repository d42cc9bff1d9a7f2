"""A run on disk: a folder with the suite as given, the plan, one record and one log a cell, and the report."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunebench.cell.expect import Expectation
from prunebench.cell.record import SCHEMA, Record
from prunebench.cell.spec import Cell
from prunebench.errors import PrunebenchError, first_line


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the whole new one, also after a power cut.

    Raises PrunebenchError where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or choose another folder with --out; what is finished is kept",
        ) from error


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
class Damaged:
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
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; the kernel lets go of it when the process ends, however it ends.

        Raises PrunebenchError where another run holds it.
        """
        with (self.folder / ".lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise PrunebenchError(
                    f"another run is writing to {self.folder}", hint="wait for it, or choose another folder with --out"
                ) from error
            yield

    # -- the plan

    @classmethod
    def create(cls, folder: Path, plan: Plan, suite_text: str) -> RunStore:
        """Make ``folder`` a run of this suite, or go on with it.

        Raises PrunebenchError where the folder holds something else or another suite's run.
        """
        store = cls(folder)
        if folder.exists() and not folder.is_dir():
            raise PrunebenchError(f"{folder} is a file, not a run folder", hint="choose another folder with --out")
        if store.plan_path.exists():
            other = store.read_plan().suite
            if other != plan.suite:
                raise PrunebenchError(
                    f"{folder} belongs to the suite '{other}', not to '{plan.suite}'",
                    hint="choose another folder with --out",
                )
        elif folder.exists() and any(folder.iterdir()):
            raise PrunebenchError(
                f"{folder} is not a run of prunebench (it has no plan.json) and is not empty",
                hint="choose another folder with --out",
            )
        write_atomically(store.suite_path, suite_text)
        for cell in plan.cells:
            write_atomically(store.spec_path(cell.id), cell.model_dump_json(indent=1) + "\n")
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

    def read_plan(self) -> Plan:
        try:
            data: dict[str, Any] = json.loads(self.plan_path.read_text(encoding="utf-8"))
            return Plan(
                suite=data["suite"],
                title=data["title"],
                cells=tuple(Cell.model_validate(entry["cell"]) for entry in data["cells"]),
                suite_sha256=data["suite_sha256"],
                gate=data["gate"],
                expect=tuple(Expectation.model_validate(figure) for figure in data.get("expect", [])),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrunebenchError(
                f"{self.plan_path} cannot be read: {first_line(error)}",
                hint="run the suite again with the same --out: finished cells are kept",
            ) from error

    # -- records

    def write(self, record: Record) -> None:
        write_atomically(self.record_path(record.id), record.model_dump_json(by_alias=True, indent=1) + "\n")

    def read(self, cell_id: str) -> Record | Damaged | None:
        """The record of a cell; None where there is none, Damaged where the file is no record of this cell."""
        path = self.record_path(cell_id)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            return Damaged(path, first_line(error))
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                found = data.get("schema") if isinstance(data, dict) else type(data).__name__
                return Damaged(path, f"schema {found!r}, this version reads {SCHEMA}")
            record = Record.model_validate(data)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            return Damaged(path, f"not a record: {where}: {error.errors()[0]['msg']}")
        except ValueError as error:
            return Damaged(path, f"not JSON: {first_line(error)}")
        if record.id != cell_id or record.cell.id != cell_id:
            return Damaged(path, f"holds the record of cell {record.cell.id}")
        return record

    def records(self, cells: Iterable[Cell] | None = None) -> tuple[list[Record], list[Damaged]]:
        """The records of these cells (the plan's where not given), in that order, and the damaged files."""
        good: list[Record] = []
        bad: list[Damaged] = []
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
