"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table: the first column left, the others right; texts are never read as rich markup."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(head):
        if index == 0:
            table.add_column(Text(name), overflow="fold", min_width=18)
        else:
            table.add_column(Text(name), justify="right", no_wrap=_narrow(rows, index))
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    return table


def _narrow(rows: Sequence[Sequence[str]], index: int) -> bool:
    """Whether a column is narrow enough that its values should not be wrapped."""
    return max((len(row[index]) for row in rows), default=0) <= 22


def wide(console: Console) -> Console:
    """The same console, wide enough for a table if it writes to a file or a pipe."""
    return console if console.is_terminal else Console(highlight=False, width=140)
