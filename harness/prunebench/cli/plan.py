"""`prunebench plan SUITE`: the cells of a suite, those that are done, and the work of each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.options import suite_options
from prunebench.cli.terminal import say
from prunebench.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from prunebench.app.plan import SuiteRequest
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec
    from prunebench.store.run_folder import RunStore


@click.command("plan", short_help="Show the cells of a suite without running any.")
@suite_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(request: SuiteRequest, *, as_json: bool) -> None:
    """Show the cells of SUITE (a file, or a shipped suite), those that are done, and their work.

    The work is a lower bound; tasks are not part of it.
    """
    import json
    import sys

    described = describe(request)
    for warning in described["warnings"]:
        say(f"warning: {warning}", err=True)
    if as_json:
        say(json.dumps(described, indent=2))
    else:
        from rich.console import Console

        # A pipe has no width: rich would fold the table at 80 columns.
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(table(described))
        console.print(summary(described), highlight=False, soft_wrap=True)
        for line in moving(described):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


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


def table(described: dict[str, Any]) -> Table:
    """The cells as a table, with calibration and seed if they differ between cells."""
    from rich.table import Table
    from rich.text import Text

    cells = described["cells"]
    # Columns that are the same in every row only take room.
    varying = [
        key for key in ("calibration", "seed") if len({cell[key] for cell in cells} - {None}) > 1
    ]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    # Names may be folded; an id that is cut in two can be neither copied nor searched for.
    for name in ("id", "model", "cell", *varying, "status"):
        shown.add_column(name, overflow="fold", no_wrap=name in {"id", "seed", "status"})
    shown.add_column("tokens", justify="right", no_wrap=True)
    shown.add_column("GFLOP", justify="right", no_wrap=True)
    styles = {"done": "green", "failed": "red", "to run": ""}
    for cell in cells:
        work = cell["estimate"]
        shown.add_row(
            Text(cell["id"]),
            Text(cell["model"]),
            Text(cell["label"]),
            *(Text("" if cell[key] is None else str(cell[key])) for key in varying),
            Text(cell["status"], style=styles[cell["status"]]),
            _count(work["tokens"]),
            _count(work["flop"], 1e9),
        )
    return shown


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
