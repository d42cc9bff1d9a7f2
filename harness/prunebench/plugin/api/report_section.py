"""The base class of report sections: text, tables and numbers that a plugin adds to the report.

A section returns data only; the report draws and escapes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas as pd

    from prunebench.record.record import Record

Value = str | int | float | None
"""A table cell: text, a number, or None for what is not available."""


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
    """A table: column headings, rows with one value for each column, and a caption."""

    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""


@dataclass(frozen=True)
class Texts:
    """Longer texts side by side, such as samples of what models write; line breaks are kept."""

    texts: Sequence[tuple[str, str]]
    """Heading and text of each, at most six."""


@dataclass(frozen=True)
class Folded:
    """Blocks that the reader sees after opening the title. They cannot be folded once more."""

    title: str
    blocks: Sequence[Paragraph | Number | Table | Texts]


Block = Paragraph | Number | Table | Texts | Folded


@dataclass(frozen=True)
class ReportData:
    """The results that a section can use."""

    rows: Sequence[dict[str, Any]]
    """One dict for each cell, with the columns of `prunebench export`; None for what is missing."""
    records: Sequence[Record]
    """The records of the same cells, in the order of the plan."""

    @property
    def frame(self) -> pd.DataFrame:
        """`rows` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))


class ReportSection(ABC):
    """A section of the report: subclass it; `prunebench_register_report_section` returns the class.

    If `build` raises an exception, the report says so in its place; the other sections are made.
    """

    name: ClassVar[str]
    """Unique among sections; lower-case with dashes."""
    title: ClassVar[str]

    @abstractmethod
    def build(self, data: ReportData) -> Sequence[Block]:
        """Return the blocks of the section in order. An empty section is left out."""
