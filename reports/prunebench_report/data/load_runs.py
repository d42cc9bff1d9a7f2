"""Reads run folders as one `ReportInput`: their plans merged, every cell once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError
from prunebench_report.data.report_input import ReportInput, SuiteText
from prunebench_report.text import clean, shorten

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record
    from prunebench.store.plan_file import Plan
    from prunebench.store.run_folder import DamagedRecord, RunStore

_SUITE_LIMIT = 100_000  # characters; generated suites can have megabytes


def load_runs(
    stores: Sequence[RunStore], only: Sequence[str] = (), *, running: bool = False
) -> ReportInput:
    """The cells of all ``stores``.

    A cell that several runs have is taken from the first run in which it is ok, otherwise from the
    first. ``only`` are shell patterns of method, label, model or id; dense always stays.
    ``running`` says that cells are still being run. Raises PrunebenchError if a plan cannot be read
    or if no cell matches ``only``.
    """
    plans = [store.read_plan() for store in stores]
    names = _run_names(stores)
    cells: dict[str, Cell] = {}
    records: dict[str, Record] = {}
    damaged: dict[str, DamagedRecord] = {}
    runs: dict[str, str] = {}
    repeated = 0
    for store, plan, name in zip(stores, plans, names, strict=True):
        wanted = {cell.id: cell for cell in _selected(plan.cells, only)}
        repeated += len(wanted.keys() & cells.keys())
        for identifier, cell in wanted.items():
            cells.setdefault(identifier, cell)
            runs.setdefault(identifier, name)
        good, bad = store.records(wanted.values())
        for record in good:
            # A later run replaces a failure by a result, but never a result.
            if record.id not in records or (record.status == "ok" != records[record.id].status):
                records[record.id] = record
                runs[record.id] = name
        for one in bad:
            damaged.setdefault(one.path.stem, one)
    if only and not cells:
        raise PrunebenchError(
            f"no cell matches {', '.join(only)}",
            hint="`prunebench export` lists the cells of a run",
        )
    several = len(stores) > 1
    return ReportInput(
        plan=replace(
            plans[0],
            title=_title(plans, names),
            suite=" + ".join(dict.fromkeys(plan.suite for plan in plans)),
            cells=tuple(cells.values()),
            expect=tuple(dict.fromkeys(figure for plan in plans for figure in plan.expect)),
        ),
        records=[records[cell] for cell in cells if cell in records],
        # A record that another run has in good order makes up for a damaged one.
        damaged=[one for cell, one in damaged.items() if cell not in records],
        suites=[
            SuiteText(name if several else "", plan.suite_sha256, _suite_text(store))
            for store, plan, name in zip(stores, plans, names, strict=True)
        ],
        runs=runs if several else {},
        repeated=repeated,
        gates=tuple(dict.fromkeys(plan.gate for plan in plans)),
        running=running,
    )


def _title(plans: Sequence[Plan], names: Sequence[str]) -> str:
    """The title of the only run; several together have one of their own."""
    if len(plans) == 1:
        return plans[0].title or plans[0].suite
    return f"{len(plans)} runs: {', '.join(names)}"


def _selected(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that match a pattern, and the dense cells of their models."""

    def matches(cell: Cell) -> bool:
        texts = (cell.method.name, cell.label, cell.model.name, cell.id)
        return any(fnmatchcase(text, pattern) for text in texts for pattern in only)

    models = {cell.model.name for cell in cells if matches(cell)} if only else set()
    return [
        cell
        for cell in cells
        if not only or matches(cell) or (cell.method.name == "dense" and cell.model.name in models)
    ]


def _run_names(stores: Sequence[RunStore]) -> list[str]:
    """A name for each run: its folder's; if two agree, with the parent folder, then a number."""
    paths = [store.folder.resolve() for store in stores]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        clean(f"{name} ({index + 1})" if name in repeated else name)
        for index, name in enumerate(names)
    ]


def _suite_text(store: RunStore) -> str | None:
    """The suite as given; None if its file is gone: the plan has all that the report needs."""
    try:
        text = store.suite_path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return shorten(text, _SUITE_LIMIT)
