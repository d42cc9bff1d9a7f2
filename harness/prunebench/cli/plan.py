"""`prunebench plan SUITE`: the cells of a suite, those that are done, and the work of each."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.options import suite_options
from prunebench.cli.terminal import say, tell
from prunebench.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

    from prunebench.app.plan import SuiteRequest
    from prunebench.cli.tables import Column
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.store.run_folder import RunStore

SAME = ("model", "calibration", "seed")
"""Columns that need no room in a narrow terminal if all cells have the same value."""


@click.command("plan", short_help="Show the cells of a suite without running any.")
@suite_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(request: SuiteRequest, *, as_json: bool) -> None:
    """Show the cells of SUITE (a file, or a shipped suite), those that are done, and their work.

    The work is a lower bound; tasks are not part of it.
    """
    import json

    described = describe(request)
    for warning in described["warnings"]:
        tell(f"warning: {warning}", err=True)
    if as_json:
        say(json.dumps(described, indent=2))
    else:
        _show(described)


def _show(described: dict[str, Any]) -> None:
    from prunebench.cli.tables import show

    columns, rows = table(described)
    # What all cells have in common goes first; the tokens say the same as the operations.
    same = [head for head in SAME if len({cell[head] for cell in described["cells"]}) == 1]
    show(columns, rows, leave_out=[*same, "calibration", "tokens", "GFLOP"])
    tell(summary(described))
    for line in moving(described):
        tell(line)


def describe(request: SuiteRequest) -> dict[str, Any]:
    """The plan as JSON data; its keys are stable."""
    from prunebench.app import plan_suite
    from prunebench.cell.unpinned import unpinned
    from prunebench.store.run_folder import RunStore
    from prunebench.suite.estimate import estimate, total

    planned = plan_suite(request)
    # Not `open`: the folder need not exist yet, and planning writes nothing.
    store = RunStore(planned.folder)
    estimates = [estimate(cell, planned.registry) for cell in planned.cells]
    cells = [
        {
            "id": cell.id,
            "label": cell.label,
            "model": cell.model.name,
            "method": cell.method.name,
            "options": cell.method.options,
            "calibration": _calibration(cell),
            "seed": cell.seed,
            "status": status(store, cell),
            "estimate": asdict(work),
        }
        for cell, work in zip(planned.cells, estimates, strict=True)
    ]
    counts = {
        key: sum(cell["status"] == word for cell in cells)
        for key, word in (("done", "done"), ("failed", "failed"), ("to_run", "to run"))
    }
    corpora = planned.registry.registered("corpus")
    branches = [one for cell in planned.cells for one in unpinned(cell, corpora)]
    rest = [work for cell, work in zip(cells, estimates, strict=True) if cell["status"] != "done"]
    return {
        "suite": planned.suite.name,
        "folder": str(planned.folder),
        "warnings": list(planned.suite.warnings),
        "cells": cells,
        "unpinned": [asdict(one) for one in dict.fromkeys(branches)],
        "totals": {
            "cells": len(cells),
            **counts,
            "estimate": asdict(total(estimates)),
            "left": asdict(total(rest)),
        },
    }


def status(store: RunStore, cell: Cell) -> str:
    """'done' (it is not run again), 'failed' (it is) or 'to run'."""
    from prunebench.record.record import Record

    found = store.read(cell.id)
    if not isinstance(found, Record):
        return "to run"
    return "done" if found.status == "ok" else "failed"


def table(described: dict[str, Any]) -> tuple[list[Column], list[list[str | Text]]]:
    """The cells as a table, with calibration and seed if they differ between cells."""
    from rich.text import Text

    from prunebench.cli.tables import Column

    cells = described["cells"]
    # Columns that are the same in every row only take room.
    varying = [
        key for key in ("calibration", "seed") if len({cell[key] for cell in cells} - {None}) > 1
    ]
    columns = [
        Column("id", keep=True),
        Column("model", words=True),
        Column("cell", words=True, keep=True),
        *(Column(key, words=key == "calibration", keep=key == "seed") for key in varying),
        Column("status"),
        Column("tokens", right=True),
        Column("GFLOP", right=True),
    ]
    styles = {"done": "green", "failed": "red", "to run": ""}
    rows: list[list[str | Text]] = [
        [
            cell["id"],
            _short_commit(cell["model"]),
            _short_commit(cell["label"]),
            *("" if cell[key] is None else str(cell[key]) for key in varying),
            Text(cell["status"], style=styles[cell["status"]]),
            _count(cell["estimate"]["tokens"]),
            _count(cell["estimate"]["flop"], 1e9),
        ]
        for cell in cells
    ]
    return columns, rows


def _short_commit(text: str) -> str:
    """A commit or a hash in a name by its first digits, which identify it."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,52}\b", "\\1…", text)


def summary(described: dict[str, Any]) -> str:
    """One line below the table."""
    totals = described["totals"]
    words = [f"{totals['cells']} cells: {totals['done']} done, {totals['to_run']} to run"]
    if totals["failed"]:
        words.append(f", {totals['failed']} failed, to be tried again")
    if totals["left"]["flop"]:
        words.append(f"; at least {_count(totals['left']['flop'], 1e9)} GFLOP left")
    return f"{''.join(words)}; folder {printable(described['folder'])}"


def moving(described: dict[str, Any]) -> list[str]:
    """One line for everything that comes from a branch of the hub, which may move."""
    lines = []
    for one in described["unpinned"]:
        kind, _, name = one["what"].partition(" ")
        if one["commit"] is None:
            where = f"'{one['revision']}' of the hub, not in the cache yet"
        else:
            where = f"'{one['revision']}', which is {one['commit']} in the cache"
        if kind == "task":
            where = f"'{one['revision']}' of its data set on the hub"
        pin = f"; to pin it, write {name}@{one['commit'] or 'COMMIT'}" if kind == "model" else ""
        lines.append(f"not pinned: {one['what']}: {where}{pin}")
    return lines


def _calibration(cell: Cell) -> str | None:
    spec = cell.calibration
    return (
        None if spec is None else f"{spec.corpus.name} {spec.split} {spec.sampler} {_amount(spec)}"
    )


def _amount(spec: CalibrationSpec) -> str:
    windows = f"{spec.rows} rows" if spec.windows is None else str(spec.windows)
    return f"{windows} x {spec.length}"


def _count(number: int | None, unit: float = 1.0) -> str:
    return "?" if number is None else f"{number / unit:,.0f}"
