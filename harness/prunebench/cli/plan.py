"""`prunebench plan SUITE`: the cells of a suite, those that are done, and the work of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    from prunebench.suite.estimate import Estimate

SAME = ("model", "calibration", "seed")
"""Columns that need no room in a narrow terminal if all cells have the same value."""


@click.command("plan", short_help="Show the cells of a suite without running any.")
@suite_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(request: SuiteRequest, *, as_json: bool) -> None:
    """Show the cells of SUITE (a file, or a shipped suite), those that are done, and their work.

    The work is a lower bound; tasks are not part of it. Minutes are those of cells in run folders
    beside this one that ran on this machine, scaled by the work; "?" if nothing like it has run.
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
    from prunebench.app.past_times import past_times
    from prunebench.cell.unpinned import unpinned
    from prunebench.store.run_folder import RunStore
    from prunebench.suite.estimate import estimate

    planned = plan_suite(request)
    # Not `open`: the folder need not exist yet, and planning writes nothing.
    store = RunStore(planned.folder)
    past = past_times(planned.folder, planned.registry)
    works = [estimate(cell, planned.registry) for cell in planned.cells]
    times = [past.seconds(cell, work.flop) for cell, work in zip(planned.cells, works, strict=True)]
    states = [status(store, cell) for cell in planned.cells]
    left = [index for index, state in enumerate(states) if state != "done"]
    corpora = planned.registry.registered("corpus")
    branches = [one for cell in planned.cells for one in unpinned(cell, corpora)]
    return {
        "suite": planned.suite.name,
        "folder": str(planned.folder),
        "warnings": list(planned.suite.warnings),
        "cells": [_cell(*facts) for facts in zip(planned.cells, states, works, times, strict=True)],
        "unpinned": [asdict(one) for one in dict.fromkeys(branches)],
        "totals": {
            "cells": len(planned.cells),
            **{key: states.count(key.replace("_", " ")) for key in ("done", "failed", "to_run")},
            "estimate": _total(works, times),
            "left": _total([works[one] for one in left], [times[one] for one in left]),
        },
    }


def _cell(cell: Cell, state: str, work: Estimate, seconds: float | None) -> dict[str, Any]:
    return {
        "id": cell.id,
        "label": cell.label,
        "model": cell.model.name,
        "method": cell.method.name,
        "options": cell.method.options,
        "calibration": _calibration(cell),
        "seed": cell.seed,
        "status": state,
        "estimate": {**asdict(work), "seconds": seconds},
    }


def _total(works: Sequence[Estimate], times: Sequence[float | None]) -> dict[str, Any]:
    from prunebench.suite.estimate import total

    return {**asdict(total(works)), "seconds": _sum(times)}


def _sum(seconds: Sequence[float | None]) -> float | None:
    """None if one of them is not known."""
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None


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
    timed = any(cell["estimate"]["seconds"] is not None for cell in cells)
    columns = [
        Column("id", keep=True),
        Column("model", words=True),
        Column("cell", words=True, keep=True),
        *(Column(key, words=key == "calibration", keep=key == "seed") for key in varying),
        Column("status"),
        Column("tokens", right=True),
        Column("GFLOP", right=True),
        # Without earlier runs on this machine nothing is known of the time.
        *([Column("minutes", right=True)] if timed else []),
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
            *([_minutes(cell["estimate"]["seconds"])] if timed else []),
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
    words.append(_time_left(described))
    return f"{''.join(words)}; folder {printable(described['folder'])}"


def _time_left(described: dict[str, Any]) -> str:
    """'; about 12 min, as earlier runs here took'; empty if nothing like it has run here."""
    from prunebench.app.time_left import in_words

    left = [one["estimate"]["seconds"] for one in described["cells"] if one["status"] != "done"]
    known = [one for one in left if one is not None]
    if not known:
        return ""
    some = "" if len(known) == len(left) else f" for {len(known)} of {len(left)} cells"
    return f"; about {in_words(sum(known))}{some}, as earlier runs on this machine took"


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 6:
        return "<0.1"
    return f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"


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
    if number is None:
        return "?"
    amount = number / unit
    return f"{amount:,.0f}" if amount >= 10 or amount.is_integer() else f"{amount:.2g}"
