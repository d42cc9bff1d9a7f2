"""The end of a run in the terminal: a compact table and the verdict."""

from __future__ import annotations

from pathlib import Path

from prunebench.cli.tables import Column, show
from prunebench.cli.terminal import tell
from prunebench.errors import printable


def show_summary(folder: Path) -> None:
    """Print the summary of the run in ``folder``, as its report begins."""
    from prunebench_report import summary

    found = summary(folder)
    if found.rows:
        name, *figures = found.head
        columns = [Column(name, words=True, keep=True)]
        show([*columns, *(Column(one, right=True) for one in figures)], found.rows)
    if found.left:
        tell(f"and {found.left} more rows in the report")
    # The mark needs a legend only if it is in the table; a label may contain "<" itself.
    if any("<" in value for row in found.rows for value in row[1:]):
        tell("<: below the quality gate")
    if any(value.endswith(" ?") for row in found.rows for value in row[1:]):
        tell("?: the quality gate is inside the value's interval")
    for sentence in found.sentences:
        tell(printable(f"- {sentence}"))
