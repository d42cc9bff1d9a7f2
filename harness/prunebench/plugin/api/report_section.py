"""What a plugin may add to the report: a section of text, tables and numbers. Data only; the report draws and escapes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | None
"""What stands in a table: text, a number, or None where it is not available."""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Number:
    """One figure with its name and its unit."""

    name: str
    value: Value
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the heads of its columns, rows of as many values, and what it is about."""

    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""


Block = Paragraph | Number | Table


@dataclass(frozen=True)
class ReportData:
    """What a section is made of."""

    rows: Sequence[dict[str, Any]]
    """A dict a cell with the columns that `prunebench export` writes; None for what is missing."""
    records: Sequence[Any]
    """The records themselves (`prunebench.record.record.Record`), in the order of the plan."""

    @property
    def frame(self) -> pd.DataFrame:
        """`rows` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))


class ReportSection(ABC):
    """A section of the report. An exception in `build` becomes a note in its place and nothing else."""

    name: ClassVar[str]
    """Unique among sections; lower case with dashes."""
    title: ClassVar[str]

    @abstractmethod
    def build(self, data: ReportData) -> Sequence[Block]:
        """The section's blocks in order; none leaves the section out."""
