"""Cells, records and run folders for tests, made without a run."""

from __future__ import annotations

from pathlib import Path

from prunebench.experiment.cell import Cell
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef
from prunebench.record.record import Error, Record
from prunebench.store.plan_file import Plan
from prunebench.store.run_folder import RunStore


def cell(seed: int = 0) -> Cell:
    method = MethodRef(
        name="magnitude", distribution="prunebench", version="0.1.0", options={"sparsity": 0.5}
    )
    return Cell(model=ModelRef(name="m", kind="hub", location="org/m"), method=method, seed=seed)


def record(of: Cell, status: str = "ok") -> Record:
    error = (
        None
        if status == "ok"
        else Error(phase="prune", type="X", message="m", log_tail="", command="c")
    )
    return Record(
        id=of.id,
        cell=of,
        status=status,
        started="2026-01-01T00:00:00+00:00",
        finished="",
        error=error,
    )


def store(folder: Path, *cells: Cell, suite: str = "s") -> RunStore:
    return RunStore.create(folder, Plan(suite, suite, cells, "0" * 64), f"name: {suite}\n")
