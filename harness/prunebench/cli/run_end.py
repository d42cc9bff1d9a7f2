"""The end of a run in the terminal: a compact table and the verdict."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from prunebench.cli.tables import grid, wide


def show_summary(folder: Path) -> None:
    """Print the summary of the run in ``folder``, as its report begins."""
    from prunebench_report import summary

    found = summary(folder)
    console = wide(Console(highlight=False))
    if found.rows:
        console.print(grid(found.head, found.rows))
    if found.left:
        console.print(f"and {found.left} more rows in the report", markup=False, soft_wrap=True)
    if any("<" in value for row in found.rows for value in row[1:]):
        console.print("<: below the quality gate", markup=False, soft_wrap=True)
    for sentence in found.sentences:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)
