"""The end of a run in the terminal: a compact table and the verdict."""

from __future__ import annotations

from pathlib import Path

from prunebench.cli.tables import console, grid, line


def show_summary(folder: Path) -> None:
    """Print the summary of the run in ``folder``, as its report begins."""
    from prunebench_report import summary

    found = summary(folder)
    shown = console()
    if found.rows:
        shown.print(grid(found.head, found.rows))
    if found.left:
        line(shown, f"and {found.left} more rows in the report")
    # The mark needs a legend only if it is in the table; a label may contain "<" itself.
    if any("<" in value for row in found.rows for value in row[1:]):
        line(shown, "<: below the quality gate")
    if any(value.endswith(" ?") for row in found.rows for value in row[1:]):
        line(shown, "?: the quality gate is inside the value's interval")
    for sentence in found.sentences:
        line(shown, f"- {sentence}")
