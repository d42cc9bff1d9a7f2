"""The verdict and a compact table as text: what a terminal shows at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prunebench_report.data import seeds
from prunebench_report.data import table as frames
from prunebench_report.output.paper_tables import rows_of
from prunebench_report.sections.verdict import verdict

if TYPE_CHECKING:
    from prunebench_report.data.load_runs import ReportInput

_SHOWN = (
    "perplexity",
    "tasks_mean",
    "inter_token_speedup",
    "sparse24_speedup",
    "memory_bytes",
    "sparsity",
    "parameters",
)
_ROWS = 30


class Summary(NamedTuple):
    """Sentences, and a table's head and rows; ``left`` rows did not fit."""

    sentences: list[str]
    head: list[str]
    rows: list[list[str]]
    left: int


def summary(gathered: ReportInput) -> Summary:
    """What the report says first, without markup."""
    plan = gathered.plan
    named = frames.names(plan.cells, gathered.runs)
    table = frames.plain(gathered.records, plan.gate, plan.expect)
    for row in table:
        row["name"] = named[row["cell"]]
    results = seeds.pooled(table, [record.cell for record in gathered.records], plan.gate)
    grid = rows_of(gathered)
    judged = next((one["key"] for one in grid["columns"] if one["note"].startswith("gate ")), None)
    columns = [
        (index, one)
        for index, one in enumerate(grid["columns"])
        if one["key"] in _SHOWN or one["key"] == judged
    ]
    rows = []
    for row in grid["rows"]:
        values = []
        for index, _ in columns:
            cell = row["cells"][index]
            interval = cell["note"] and " to " in cell["note"] and "±" not in cell["text"]
            below = cell["note"] == "below the gate"
            values.append(
                f"{cell['text']} ({cell['note']})"
                if interval
                else f"{cell['text']}{' <' if below else ''}"
            )
        rows.append(
            [row["name"] if row["status"] == "ok" else f"{row['name']}: {row['status']}", *values]
        )
    return Summary(
        [f"{one.question}: {one.text}" for one in verdict(results, plan.gate)] if results else [],
        [
            "cell",
            *(
                f"{one['head']}, {one['unit']}" if one["unit"] else one["head"]
                for _, one in columns
            ),
        ],
        rows[:_ROWS],
        max(0, len(rows) - _ROWS),
    )
