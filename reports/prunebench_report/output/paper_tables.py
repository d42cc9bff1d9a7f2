"""The main table as Markdown or LaTeX, for papers and pull requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from prunebench_report.sections import main_table
from prunebench_report.text import MISSING, TIMES

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

# Columns that a paper's table seldom has.
_LEFT_OUT = {"load_s", "io_utilisation", "peak_rss_bytes", "ttft_p50_s"}

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


def paper_table(given: ReportInput, form: Literal["markdown", "latex"]) -> str:
    """One row per cell, seeds pooled, values in the units of the heads, intervals of speed-ups."""
    table = main_table.section(given)
    columns = [(i, one) for i, one in enumerate(table["columns"]) if one["key"] not in _LEFT_OUT]
    heads = [f"{one['head']} ({one['unit']})" if one["unit"] else one["head"] for _, one in columns]
    rows = [
        [_name(row), *(_value(row["cells"][index]) for index, _ in columns)]
        for row in table["rows"]
    ]
    if form == "markdown":
        return as_markdown(["cell", *heads], rows)
    return as_latex(["cell", *heads], rows, given.plan.title or given.plan.suite)


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["status"] == "ok" else f"{row['name']} ({row['status']})"


def _value(cell: dict[str, Any]) -> str:
    if cell["interval"]:
        return f"{cell['text']} [{cell['note'].replace(' to ', ', ')}]"
    return str(cell["text"])


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; characters that have a meaning there are escaped."""

    def line(values: Sequence[str]) -> str:
        return f"| {' | '.join(values)} |\n"

    # Names to the left, numbers to the right
    ruler = ["---", *("---:" for _ in head[1:])]
    escaped = [[_escape_markdown(value) for value in values] for values in (head, *rows)]
    return "".join(map(line, [escaped[0], ruler, *escaped[1:]]))


def _escape_markdown(value: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(value.split()))


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table with the rules of `booktabs`."""

    def line(values: Sequence[str]) -> str:
        return " & ".join(_escape_latex(value) for value in values) + r" \\"

    parts = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{_escape_latex(caption)}}}",
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


def _escape_latex(value: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(value.split())) or MISSING
