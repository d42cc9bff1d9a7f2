"""The verdict and a compact table as text: what a terminal shows at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench_report.sections import main_table, verdict

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

# Few enough for a terminal; the column that the gate judges is shown as well.
_SHOWN = {
    "perplexity",
    "tasks_mean",
    "inter_token_speedup",
    "sparse24_speedup",
    "memory_bytes",
    "sparsity",
    "parameters",
}
_MOST_ROWS = 30


class Summary(NamedTuple):
    """Sentences, and a table's head and rows; ``left`` counts the rows that are left out."""

    sentences: list[str]
    head: list[str]
    rows: list[list[str]]
    left: int


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
    rows = [
        [_name(row), *(_value(row["cells"][index]) for index, _ in columns)]
        for row in table["rows"]
    ]
    return Summary(
        sentences=[f"{one.question}: {one.text}" for one in verdict.section(given)],
        head=["cell", *heads],
        rows=rows[:_MOST_ROWS],
        left=max(0, len(rows) - _MOST_ROWS),
    )


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["status"] == "ok" else f"{row['name']}: {row['status']}"


def _value(cell: dict[str, Any]) -> str:
    # A mean over seeds has its deviation already; an interval as well would be too wide.
    if cell["interval"] and "±" not in cell["text"]:
        return f"{cell['text']} ({cell['note']})"
    return f"{cell['text']}{' <' if cell['below'] else ' ?' if cell['unsure'] else ''}"
