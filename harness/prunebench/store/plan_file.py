"""The plan of a run folder, plan.json: which cells the run has, and what they are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.record.expectations import Expectation
from prunebench.record.record import SCHEMA
from prunebench.store.atomic import write_atomically


@dataclass(frozen=True)
class Plan:
    """The cells of a run, in order, and the suite that they come from."""

    suite: str
    """The suite's name."""
    title: str
    cells: tuple[Cell, ...]
    suite_sha256: str
    gate: float = 0.95
    """The quality gate: the share of the dense model's quality that a cell has to reach."""
    generation_gate: float | None = None
    """The same for what the model writes; None if that is not judged."""
    expect: tuple[Expectation, ...] = ()
    """Published figures of these cells."""


def write_plan(path: Path, plan: Plan) -> None:
    """Raises PrunebenchError if the file cannot be written."""
    data = {
        "schema": SCHEMA,
        "suite": plan.suite,
        "title": plan.title,
        "suite_sha256": plan.suite_sha256,
        "gate": plan.gate,
        "generation_gate": plan.generation_gate,
        "expect": [figure.model_dump(mode="json") for figure in plan.expect],
        "cells": [{"id": cell.id, "cell": cell.model_dump(mode="json")} for cell in plan.cells],
    }
    write_atomically(path, json.dumps(data, indent=1) + "\n")


def read_plan(path: Path) -> Plan:
    """Raises PrunebenchError if the file is missing or damaged."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Plan(
            suite=data["suite"],
            title=data["title"],
            cells=tuple(
                Cell.model_validate(entry["cell"]).stored_as(str(entry["id"]))
                for entry in data["cells"]
            ),
            suite_sha256=data["suite_sha256"],
            gate=data["gate"],
            generation_gate=data.get("generation_gate"),
            expect=tuple(Expectation.model_validate(figure) for figure in data.get("expect", [])),
        )
    # pydantic's ValidationError is a ValueError; a file nested too deeply is a RecursionError.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PrunebenchError(
            f"{path} cannot be read: {first_line(error)}",
            hint="run the suite again with the same --out: finished cells are kept",
        ) from error
