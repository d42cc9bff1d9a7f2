"""Tables and lines in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunebench.errors import printable


def console() -> Console:
    """Standard output, wide enough for a table."""
    found = Console(highlight=False)
    # A file or a pipe has no width, and rich would assume 80 columns.
    return found if found.is_terminal else Console(highlight=False, width=140)


def line(shown: Console, text: str) -> None:
    """Print ``text`` as it is."""
    # Labels contain brackets, which rich reads as markup; long lines are the terminal's to wrap.
    shown.print(printable(text), markup=False, soft_wrap=True)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with the first column on the left and the others on the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(head):
        if index == 0:
            table.add_column(Text(name), overflow="fold", min_width=18)
        else:
            table.add_column(Text(name), justify="right", no_wrap=_narrow(rows, index))
    for row in rows:
        # Text, not str: a str would be read as markup.
        table.add_row(*(Text(value) for value in row))
    return table


def _narrow(rows: Sequence[Sequence[str]], index: int) -> bool:
    """Whether a column is narrow enough that its values should not be wrapped."""
    return max((len(row[index]) for row in rows), default=0) <= 22
