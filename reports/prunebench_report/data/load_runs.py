"""The run folders behind one report: their plans as one, every cell once, each with the run that it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from prunebench.errors import PrunebenchError
from prunebench_report.text import clean, shorten

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record
    from prunebench.store.plan_file import Plan
    from prunebench.store.run_folder import DamagedRecord, RunStore

_SUITE_LIMIT = 100_000


class SuiteText(NamedTuple):
    """A suite as it was given; ``run`` is empty where the report is of one run."""

    run: str
    sha256: str
    text: str | None


@dataclass(frozen=True)
class ReportInput:
    """What one report is about."""

    plan: Plan
    records: list[Record]
    damaged: list[DamagedRecord]
    suites: list[SuiteText]
    runs: dict[str, str]
    """The run of each cell id; empty where the report is of one run."""
    gates: tuple[float, ...]


def gather(stores: Sequence[RunStore], only: Sequence[str] = ()) -> ReportInput:
    """The cells of all ``stores``, the same id once: the first that has a result, else the first.

    ``only`` keeps cells by method, label, model or id, as shell patterns; dense stays. Raises PrunebenchError for a
    folder that is no run, and where a pattern fits no cell.
    """
    plans = [store.read_plan() for store in stores]
    names = _run_names(stores)
    cells: dict[str, Cell] = {}
    records: dict[str, Record] = {}
    damaged: dict[str, DamagedRecord] = {}
    runs: dict[str, str] = {}
    for store, plan, name in zip(stores, plans, names, strict=True):
        wanted = _selected(plan.cells, only)
        for cell in wanted:
            cells.setdefault(cell.id, cell)
            runs.setdefault(cell.id, name)
        good, bad = store.records(wanted)
        for record in good:
            if record.id not in records or (record.status == "ok" != records[record.id].status):
                records[record.id] = record
                runs[record.id] = name
        for one in bad:
            damaged.setdefault(one.path.stem, one)
    if only and not cells:
        raise PrunebenchError(
            f"no cell fits {', '.join(only)}", hint="`prunebench export` lists the cells of a run"
        )
    first = plans[0]
    several = len(stores) > 1
    return ReportInput(
        plan=replace(
            first,
            title=" + ".join(dict.fromkeys(plan.title or plan.suite for plan in plans)),
            cells=tuple(cells.values()),
            expect=tuple(dict.fromkeys(figure for plan in plans for figure in plan.expect)),
        ),
        records=[records[cell] for cell in cells if cell in records],
        damaged=[one for cell, one in damaged.items() if cell not in records],
        suites=[
            SuiteText(name if several else "", plan.suite_sha256, _suite_text(store))
            for store, plan, name in zip(stores, plans, names, strict=True)
        ],
        runs=runs if several else {},
        gates=tuple(dict.fromkeys(plan.gate for plan in plans)),
    )


def _selected(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    def fits(cell: Cell) -> bool:
        texts = (cell.method.name, cell.label, cell.model.name, cell.id)
        return any(fnmatchcase(text, pattern) for text in texts for pattern in only)

    chosen = {cell.model.name for cell in cells if fits(cell)} if only else set()
    return [
        cell
        for cell in cells
        if not only or fits(cell) or (cell.method.name == "dense" and cell.model.name in chosen)
    ]


def _run_names(stores: Sequence[RunStore]) -> list[str]:
    """A name for each run: its folder's, with as many parents as it takes, at last a number."""
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
    try:
        text = store.suite_path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return shorten(text, _SUITE_LIMIT)
