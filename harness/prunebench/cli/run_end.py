"""The end of a run in the terminal: a compact table, the verdict, and what warns of both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench.cli.tables import Column, show
from prunebench.cli.terminal import tell
from prunebench.errors import printable

if TYPE_CHECKING:
    from prunebench_report.output.terminal_summary import Summary

NOT_STRICT = 4
"""Exit code of --strict: there are warnings, or published figures that were not reproduced."""
SIZES = ("Weights",)
"""Heads of columns that are left out of a narrow terminal first."""


def show_summary(found: Summary) -> None:
    """Print the summary of a run, as its report begins."""
    if found.rows:
        name, *figures = found.head
        columns = [Column(name, words=True, keep=True)]
        columns += [Column(one, right=True) for one in figures]
        # Speed and quality are what the sentences below are about.
        show(columns, found.rows, leave_out=[one for one in figures if one.startswith(SIZES)])
    if found.left:
        tell(f"and {found.left} more rows in the report")
    # A mark needs a legend only if it is in the table; a label may contain "<" itself.
    if any("<" in value for row in found.rows for value in row[1:]):
        tell("<: below the quality gate")
    if any(value.endswith(" ?") for row in found.rows for value in row[1:]):
        tell("?: the quality gate is inside the value's interval")
    for sentence in found.sentences:
        tell(printable(f"- {sentence}"))


def show_warnings(warnings: Sequence[str], misses: Sequence[str]) -> None:
    """Print what the report says before its numbers, and the published figures that it misses."""
    for heading, lines in (
        ("before comparing numbers:", warnings),
        ("published figures that this run does not reproduce:", misses),
    ):
        if lines:
            tell(heading, err=True)
        for line in lines:
            tell(printable(f"- {line}"), err=True)


def strict_reason(warnings: Sequence[str], misses: Sequence[str]) -> str | None:
    """Why a run or a report does not pass --strict; None if it does."""
    counts = [
        f"{len(lines)} {name if len(lines) == 1 else f'{name}s'}"
        for lines, name in ((warnings, "warning"), (misses, "published figure"))
        if lines
    ]
    if misses:
        counts[-1] += " not reproduced"
    return f"--strict: {' and '.join(counts)}" if counts else None


def end_unless_clean(reason: str | None) -> None:
    """End a command that has --strict, if there is a ``reason`` why it does not pass."""
    if reason is not None:
        tell(reason, err=True)
        sys.exit(NOT_STRICT)
