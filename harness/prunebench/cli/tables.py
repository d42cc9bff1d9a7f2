"""Tables that fit the terminal: the names of rows always stay, other columns give way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.cli.terminal import tell, width
from prunebench.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

GAP = 2
"""Blanks between two columns."""
COMFORTABLE = 24
"""A column of words gets this width, or what its words need, before others are left out."""


@dataclass(frozen=True)
class Column:
    """A column of a table; all columns except names and words are never broken into lines."""

    head: str
    right: bool = False
    words: bool = False
    """Its values may take several lines, which break between words."""
    keep: bool = False
    """It is in the table in every terminal."""


def show(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Text]],
    *,
    leave_out: Sequence[str] = (),
) -> None:
    """Print a table that is as wide as the terminal at most, and name the columns left out.

    They are left out in the order of the heads in ``leave_out``, then from the right. A pipe or a
    file has no width, so the table is whole there.
    """
    shown, missing = fitted(columns, rows, width(), leave_out)
    _console().print(shown)
    if missing:
        tell(f"left out, because the terminal is narrow: {', '.join(missing)}")


def fitted(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Text]],
    room: int | None,
    leave_out: Sequence[str] = (),
) -> tuple[Table, list[str]]:
    """The table for ``room`` columns of text (None: as many as it needs), and what is not in it."""
    from rich.table import Table
    from rich.text import Text

    texts = [[str(row[index]) for row in rows] for index in range(len(columns))]
    chosen = _chosen(columns, texts, room, leave_out)
    widths = _widths([columns[one] for one in chosen], [texts[one] for one in chosen], room)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
        header_style="bold",
        show_header=any(column.head for column in columns),
    )
    for one, size in zip(chosen, widths, strict=True):
        justify = "right" if columns[one].right else "left"
        # Only a single word that is longer than the terminal is folded.
        table.add_column(Text(columns[one].head), justify=justify, width=size, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # Text, because a str would be read as markup.
        table.add_row(*(_text(row[one]) for one in chosen))
    return table, [column.head for one, column in enumerate(columns) if one not in chosen]


def _text(value: str | Text) -> Text:
    from rich.text import Text

    return value if isinstance(value, Text) else Text(printable(value))


def _chosen(
    columns: Sequence[Column],
    texts: Sequence[Sequence[str]],
    room: int | None,
    leave_out: Sequence[str],
) -> list[int]:
    """The indices of the columns that are shown."""
    everything = list(range(len(columns)))
    if room is None:
        return everything

    def fits(indices: list[int]) -> bool:
        needed = [_comfortable(columns[one], texts[one]) for one in indices]
        return sum(needed) + GAP * (len(needed) - 1) <= room

    order = [index for head in leave_out for index in everything if columns[index].head == head]
    order += [index for index in reversed(everything) if index not in order]
    chosen, gone = everything, []
    for index in order:
        if fits(chosen):
            break
        if not columns[index].keep:
            chosen = [one for one in chosen if one != index]
            gone.append(index)
    # A narrow column may find room again, because a wide one had to go after it.
    for index in reversed(gone):
        if fits(more := sorted([*chosen, index])):
            chosen = more
    return chosen


def _widths(
    columns: Sequence[Column], texts: Sequence[Sequence[str]], room: int | None
) -> list[int]:
    most = [_longest([column.head, *values]) for column, values in zip(columns, texts, strict=True)]
    if room is None:
        return most
    found = [_least(column, values) for column, values in zip(columns, texts, strict=True)]
    spare = room - sum(found) - GAP * (len(found) - 1)
    for _ in range(spare):
        # The column whose text is cut the most gets the next place.
        wanting = [one for one in range(len(found)) if found[one] < most[one]]
        if not wanting:
            break
        found[max(wanting, key=lambda one: most[one] / found[one])] += 1
    if spare < 0:
        # Nothing else can give way: the longest word of the widest column of words is folded.
        widest = max(range(len(found)), key=lambda one: (columns[one].words, found[one]))
        found[widest] = max(1, found[widest] + spare)
    return found


def _least(column: Column, values: Sequence[str]) -> int:
    """The least width that breaks no word, and no value of a column that is not of words."""
    broken = [word for text in (column.head, *values) for word in text.split()]
    return _longest(broken if column.words else [*column.head.split(), *values])


def _comfortable(column: Column, values: Sequence[str]) -> int:
    return max(_least(column, values), min(_longest(values), COMFORTABLE) if column.words else 0)


def _longest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def _console() -> Console:
    """Standard output; it never folds a table, because the table has its width."""
    from rich.console import Console

    return Console(highlight=False, width=10_000)
