"""What a scatter plot is made of: the panel, its points, its labels, and the colours that stand for CSS variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MARKERS = "osD^vPX*"
WIDTH, HEIGHT = 460, 360
FONT = 11.0
# Colours that matplotlib draws with; each becomes the CSS variable of the same place in the style sheet.
INK, SOFT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "--ink", SOFT: "--muted", GRID: "--line", PAPER: "--surface"}
METHODS = [f"#1000{index:02x}" for index in range(len(MARKERS))]


@dataclass(frozen=True)
class Panel:
    """What is drawn against what."""

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
    """A cell in a panel, in the panel's units; ``x_settled`` is the x that counts in comparisons."""

    cell: str
    name: str
    method: str
    short: str
    x: float
    y: float
    x_settled: float
    x_range: tuple[float, float] | None
    y_range: tuple[float, float] | None


@dataclass(frozen=True)
class Text:
    """A label, set by us and not by matplotlib, which would look for its glyphs and read `$` as mathematics."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    kind: Literal["name", "hint"]
