"""What a scatter plot consists of: panel and points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """What is drawn against what.

    ``x`` and ``y`` are columns of the table; ``x_better`` and ``y_better`` are 1 if higher values
    are better and -1 if lower ones are. ``x_factor`` converts to the unit of ``x_label``;
    ``x_least`` is the least range of x in that unit, so that noise does not fill the plot. A
    ``gated`` panel has a line at the quality gate.
    """

    caption: str
    x: str
    y: str
    x_label: str
    y_label: str
    x_better: Literal[-1, 1]
    y_better: Literal[-1, 1]
    x_factor: float = 1.0
    x_least: float = 0.0
    log_y: bool = False
    gated: bool = False


@dataclass(frozen=True)
class Point:
    """A cell in the units of its panel; ``x_settled`` is the x that counts in comparisons."""

    cell: str
    name: str
    method: str
    short: str
    x: float
    y: float
    x_settled: float
    x_range: tuple[float, float] | None
    y_range: tuple[float, float] | None
    contended: bool = False
    """Whether others used the machine while x was timed: drawn grey, and on no frontier."""
