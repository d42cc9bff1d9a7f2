"""How long a cell will take here, from cells that earlier runs measured on this machine.

A cell that has run takes as long again. Otherwise the time of cells of the same model, on the same
device, is scaled by their work, first of the same method and then of any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.registry import Registry

MOST_RECORDS = 300
"""Records that are read, the newest first: planning should answer at once."""
MOST_SCALED = 10
"""The largest ratio of two cells' work for which time is scaled: beyond it, other costs decide."""


@dataclass(frozen=True)
class PastCell:
    """A cell that has a result, what it took in seconds, and its work in FLOP if that is known."""

    cell: Cell
    seconds: float
    flop: int | None


@dataclass(frozen=True)
class PastTimes:
    """What is known; `seconds` estimates from it."""

    cells: Sequence[PastCell] = ()

    def seconds(self, cell: Cell, flop: int | None) -> float | None:
        """Seconds that ``cell`` with this work will take; None if nothing like it has run here."""
        if again := [one.seconds for one in self.cells if one.cell.id == cell.id]:
            return median(again)
        alike = [one for one in self.cells if _kind(one.cell) == _kind(cell)]
        method = [one for one in alike if one.cell.method.name == cell.method.name]
        for known in (method, alike):
            if scaled := [s for one in known if (s := _scaled(one, flop)) is not None]:
                return median(scaled)
        return None


def _kind(cell: Cell) -> tuple[Any, ...]:
    """What two cells must share before the time of one says something of the other.

    Tasks are no part of the estimated work, so cells with other tasks cannot be scaled.
    """
    return cell.model, cell.device, cell.threads, cell.gpus, cell.tasks


def _scaled(past: PastCell, flop: int | None) -> float | None:
    if not past.flop or not flop:
        return None
    ratio = flop / past.flop
    return past.seconds * ratio if 1 / MOST_SCALED <= ratio <= MOST_SCALED else None


def past_times(folder: Path, registry: Registry) -> PastTimes:
    """The times of this machine in ``folder`` and the run folders beside it.

    Damaged ones are left out.
    """
    from prunebench.measure.devices.provenance import machine

    here = _machine(machine())
    found = []
    for path in _newest(folder.parent):
        if (past := _past_cell(path, here, registry)) is not None:
            found.append(past)
    return PastTimes(found)


def _newest(runs: Path) -> list[Path]:
    """The record files of the run folders in ``runs``."""
    files: list[tuple[float, Path]] = []
    try:
        for plan in runs.glob("*/plan.json"):
            files += [(one.stat().st_mtime, one) for one in (plan.parent / "cells").glob("*.json")]
    except OSError:  # a folder that must not be read, or that goes away
        return []
    return [path for _, path in sorted(files, reverse=True)[:MOST_RECORDS]]


def _past_cell(path: Path, here: tuple[Any, ...], registry: Registry) -> PastCell | None:
    from pydantic import ValidationError

    from prunebench.experiment.cell import Cell
    from prunebench.suite.estimate import estimate

    try:
        # Without the checks of a whole record, which has megabytes of samples.
        data = json.loads(path.read_bytes())
        if data["status"] != "ok" or _machine(data["provenance"]) != here:
            return None
        cell = Cell.model_validate(data["cell"])
        seconds = sum(float(phase["seconds"]) for phase in data["cost"]["phases"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    try:
        return PastCell(cell, seconds, estimate(cell, registry).flop)
    except (PrunebenchError, KeyError, ValidationError):  # its plugin is not here any more
        return PastCell(cell, seconds, None)


def _machine(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    gpus = tuple(str(gpu.get("name")) for gpu in facts.get("gpus") or [])
    return facts.get("cpu"), facts.get("cpu_cores_usable"), gpus
