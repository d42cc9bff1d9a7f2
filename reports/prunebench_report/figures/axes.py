"""The frame of a plot: grid, ticks, labels of the axes, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunebench_report.figures.path_data import shortest
from prunebench_report.figures.scale import Scale, tick_text
from prunebench_report.figures.svg import CHARACTER, UNITS, label, line, pixels, stretched

Better = Literal[-1, 0, 1]

HEIGHT = 260.0
"""Of the area that data is drawn in, in pixels."""
NARROW, ROOMY = (220.0, 386.0), (386.0, 1200.0)
"""Widths of that area, in pixels: on a phone or in one of three columns, and elsewhere."""

_ARROWS = {
    (1, 1): "↗",
    (-1, 1): "↖",
    (1, -1): "↘",
    (-1, -1): "↙",
    (0, 1): "↑",
    (0, -1): "↓",
    (1, 0): "→",
    (-1, 0): "←",
}


@dataclass(frozen=True)
class Frame:
    """Two axes with their labels; ``x_better`` is 1 if higher values are better, -1 if lower."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    x_better: Better = 0
    y_better: Better = 0
    height: float = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The share of the width, and pixels from the top."""
        return self.x.share(x), self.height * (1 - self.y.share(y))

    def draw(self, curves: str = "") -> str:
        """Grid and labels. Ticks that would touch on a phone are left out there.

        ``curves`` are paths above the grid, `UNITS` wide and as many units high as pixels.
        """
        skipped = _crowded(self.x)
        across = [
            label(
                tick_text(tick),
                (self.x.share(tick), self.height),
                shift=(0, 16),
                kind="roomy" if index in skipped else "",
            )
            for index, tick in enumerate(self.x.ticks)
        ]
        across.append(label(self.x_label, (0.5, self.height), shift=(0, 34)))
        upwards = [
            label(tick_text(tick), self.at(self.x.low, tick), shift=(-6, 4))
            for tick in self.y.ticks
        ]
        parts = [
            stretched(UNITS, self.height, self._grid() + curves),
            f'<g class="tick" text-anchor="middle">{"".join(across)}</g>',
            f'<g class="tick" text-anchor="end">{"".join(upwards)}</g>',
        ]
        if self.y_label:
            parts.append(label(self.y_label, (0, 0), shift=(-44, -10), kind="tick"))
        if arrow := _ARROWS.get((self.x_better, self.y_better)):
            # Above the area, so that it covers no mark.
            better = (f"better {arrow}", (1.0, 0.0))
            parts.append(label(*better, shift=(0, -10), anchor="end", kind="hint"))
        return "".join(parts)

    def _grid(self) -> str:
        levels = [f"M0 {pixels(self.at(self.x.low, tick)[1])}h{UNITS}" for tick in self.y.ticks]
        height = pixels(self.height)
        levels += [
            f"M{shortest(UNITS * self.x.share(tick), 1)} 0v{height}" for tick in self.x.ticks
        ]
        return f'<path class="level" d="{"".join(levels)}"/>'

    def rule(self, value: float, kind: str) -> str:
        """A horizontal line at ``value``."""
        return line(kind, *ends(self, value))


def ends(frame: Frame, value: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of the horizontal line at ``value``."""
    _, y = frame.at(frame.x.low, value)
    return (0.0, y), (1.0, y)


def _crowded(scale: Scale) -> set[int]:
    """The ticks whose text would touch the one before in the narrowest plot."""
    # `free` is where the next text may begin, in pixels.
    hidden, free = set(), -1e9
    for index, tick in enumerate(scale.ticks):
        half = CHARACTER * len(tick_text(tick)) / 2
        middle = NARROW[0] * scale.share(tick)
        if middle - half < free:
            hidden.add(index)
        else:
            free = middle + half + 4
    return hidden
