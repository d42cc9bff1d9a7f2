"""The main table as Markdown or LaTeX, for papers and pull requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from prunebench_report.data import seeds
from prunebench_report.data import table as frames
from prunebench_report.sections.main_table import matrix
from prunebench_report.text import MISSING, TIMES

if TYPE_CHECKING:
    from prunebench_report.data.load_runs import ReportInput

_LEFT_OUT = {"load_s", "io_utilisation", "peak_rss_bytes", "ttft_p50_s"}
"""Columns that a paper's table seldom has."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "·": r"$\cdot$",
}


def main_table(gathered: ReportInput, form: Literal["markdown", "latex"]) -> str:
    """A row a cell, seeds pooled, values in the units of the heads; speed-ups with their 95 % interval."""
    grid = rows_of(gathered)
    columns = [
        (index, one) for index, one in enumerate(grid["columns"]) if one["key"] not in _LEFT_OUT
    ]
    head = [
        "cell",
        *(f"{one['head']} ({one['unit']})" if one["unit"] else one["head"] for _, one in columns),
    ]
    rows = [
        [_name(row), *(_value(row["cells"][index], one) for index, one in columns)]
        for row in grid["rows"]
    ]
    return (
        markdown(head, rows)
        if form == "markdown"
        else latex(head, rows, gathered.plan.title or gathered.plan.suite)
    )


def rows_of(gathered: ReportInput) -> dict[str, Any]:
    """The table of all cells, as the report has it."""
    plan = gathered.plan
    named = frames.names(plan.cells, gathered.runs)
    by_id = {row["cell"]: row for row in frames.plain(gathered.records, plan.gate, plan.expect)}
    rows = [
        {**by_id[cell.id], "name": named[cell.id]}
        if cell.id in by_id
        else {
            "cell": cell.id,
            "name": named[cell.id],
            "model": cell.model.name,
            "method": cell.method.name,
        }
        | {"status": "not run"}
        for cell in plan.cells
    ]
    return matrix(seeds.pooled(rows, plan.cells, plan.gate), plan.gate)


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["status"] == "ok" else f"{row['name']} ({row['status']})"


def _value(cell: dict[str, Any], column: dict[str, Any]) -> str:
    ratio = column["unit"] == TIMES and cell["note"] and " to " in cell["note"]
    return f"{cell['text']} [{cell['note'].replace(' to ', ', ')}]" if ratio else str(cell["text"])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; what has a meaning there is escaped."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    text = [
        [_plain(value) if index != 1 else value for value in line]
        for index, line in enumerate(lines)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in text)


def _plain(value: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(value.split()))


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table with the rules of `booktabs`."""

    def line(values: Sequence[str]) -> str:
        return " & ".join(_tex(value) for value in values) + r" \\"

    parts = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        line(head),
        r"\midrule",
        *(line(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def _tex(value: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(value.split())) or MISSING
