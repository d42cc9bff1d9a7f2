"""What a scatter plot consists of: panel, points, labels and colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Methods differ in shape as well as colour; beyond eight they repeat.
MARKERS = "osD^vPX*"
WIDTH, HEIGHT = 460, 360  # pixels
FONT = 11.0
# Colours that nobody would choose: after drawing, each is replaced by the CSS variable beside it,
# so that a plot follows the page's light or dark theme.
INK, SOFT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "--ink", SOFT: "--muted", GRID: "--line", PAPER: "--surface"}
METHODS = [f"#1000{index:02x}" for index in range(len(MARKERS))]


@dataclass(frozen=True)
class Panel:
    """What is drawn against what; ``key`` is unique within the page.

    ``x`` and ``y`` are columns of the table; ``x_better`` and ``y_better`` are 1 if higher values
    are better and -1 if lower ones are. ``x_factor`` converts to the unit of ``x_label``. A
    ``gated`` panel has a line at the quality gate.
    """

    key: str
    caption: str
    x: str
    y: str
    x_label: str
    y_label: str
    x_better: Literal[-1, 1]
    y_better: Literal[-1, 1]
    x_factor: float = 1.0
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


@dataclass(frozen=True)
class Text:
    """A label in pixels from the lower left corner.

    We write labels ourselves: matplotlib would need their glyphs and read `$` as mathematics.
    """

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    kind: Literal["name", "hint"]
