"""The verdict and a compact table as text: what a terminal shows at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench_report.data.columns import Row
from prunebench_report.sections import main_table, published, verdict, warnings
from prunebench_report.text import MISSING, percent

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

# Few enough for a terminal; the column that the gate judges is shown as well, and what was removed.
_SHOWN = {"perplexity", "tasks_mean", "inter_token_speedup", "sparse24_speedup", "memory_bytes"}
REMOVED = "Removed"
_MOST_ROWS = 30


class Summary(NamedTuple):
    """Sentences, and a table's head and rows; ``left`` counts the rows that are left out.

    ``warnings`` are what to know before comparing numbers, ``misses`` the published figures that
    the run does not reproduce. ``not_run`` says that cells are missing; None if none is.
    """

    sentences: list[str]
    head: list[str]
    rows: list[list[str]]
    left: int
    warnings: list[str]
    misses: list[str]
    not_run: str | None


def terminal_summary(given: ReportInput) -> Summary:
    """What the report says first, without markup; a value below the quality gate ends in ' <'.

    One whose interval contains the gate ends in ' ?'.
    """
    table = main_table.section(given)
    columns = [
        (index, one)
        for index, one in enumerate(table["columns"])
        if one["key"] in _SHOWN or one["judged"]
    ]
    heads = [f"{one['head']}, {one['unit']}" if one["unit"] else one["head"] for _, one in columns]
    figures = {row["cell"]: row for row in given.rows}
    rows = [
        [
            _name(row),
            *(_value(row["cells"][index]) for index, _ in columns),
            _removed(figures[row["id"]]),
        ]
        for row in table["rows"]
    ]
    return Summary(
        sentences=[f"{one.question}: {one.text}" for one in verdict.section(given)],
        head=["cell", *heads, REMOVED],
        rows=rows[:_MOST_ROWS],
        left=max(0, len(rows) - _MOST_ROWS),
        warnings=warnings.before_comparing(given),
        misses=_misses(given),
        not_run=warnings.not_run(given),
    )


def _misses(given: ReportInput) -> list[str]:
    """Published figures from which a measured one is too far away, or beside which there is none.

    Cells that failed or were not run are named elsewhere.
    """
    return [
        f"{one['method']} on {one['model']}, {one['metric']}: published {one['published']}, "
        f"measured {one['measured']}; {one['state']}"
        for one in published.section(given)
        if one["agrees"] is False or one["state"] == published.NOT_MEASURED
    ]


def _removed(row: Row) -> str:
    """Zeros, parameters, or both: a method that removes layers or channels makes no zeros."""
    if row.get("removed_share") is None:
        return MISSING
    words = []
    if row["removed_share"] > 0:
        words.append(f"{percent(row['removed_share'])} params")
    if row["zeros"] > row["zeros_dense"]:
        words.append(f"{percent(row['sparsity'])} zeros")
    return ", ".join(words) or "nothing"


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["status"] == "ok" else f"{row['name']}: {row['status']}"


def _value(cell: dict[str, Any]) -> str:
    # A mean over seeds has its deviation already; an interval as well would be too wide.
    if cell["interval"] and "±" not in cell["text"]:
        return f"{cell['text']} ({cell['note']})"
    return f"{cell['text']}{' <' if cell['below'] else ' ?' if cell['unsure'] else ''}"
