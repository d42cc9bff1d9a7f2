"""Memory over time as small multiples: one picture per cell, all on the same axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.selection import some_of_every_method
from prunebench_report.figures.timeline import (
    drawable,
    ends_of,
    peak,
    phase_colours,
    phase_legend,
    timeline,
)
from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.record.memory import Timeline
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

MOST = 12
"""Cells that are drawn; the others have a picture in their card."""
HEIGHT = 90.0
"""Of a picture, in pixels."""


def section(given: ReportInput) -> dict[str, Any] | None:
    """The pictures, dense first, and how many cells have none here. None without a timeline."""
    known = [(record, line) for record in given.detailed if (line := line_of(record)) is not None]
    if not known:
        return None
    picked = {one.id for one in some_of_every_method([record for record, _ in known], MOST)}
    lines = [(record, line) for record, line in known if record.id in picked]
    shared = [line for _, line in lines]
    # One scale for all, so that heights and widths can be compared.
    ends, colours = ends_of(shared), phase_colours(shared)
    # Dense comes first, because all others are compared with it.
    pictures = []
    for record, line in sorted(lines, key=lambda one: one[0].cell.method.name != "dense"):
        name, most = clean(given.names[record.id]), peak(record)
        caption = f"Memory of {name}" + (f", {most}" if most else "")
        one = timeline(caption, line, ends, colours, HEIGHT)
        pictures.append({"id": record.id, "name": name, "peak": most, "svg": one.svg})
    return {
        "pictures": pictures,
        "phases": phase_legend(colours),
        "left_out": len(known) - len(pictures),
        "gpu": any(line.gpu_bytes for line in shared),
    }


def of_card(record: Record) -> dict[str, Any] | None:
    """The picture of one cell on axes of its own."""
    line = line_of(record)
    if line is None:
        return None
    colours = phase_colours([line])
    most = peak(record)
    caption = "Memory over time" + (f", {most}" if most else "")
    one = timeline(caption, line, ends_of([line]), colours)
    return {
        "caption": caption,
        "svg": one.svg,
        "phases": phase_legend(colours),
        "gpu": bool(line.gpu_bytes),
    }


def line_of(record: Record) -> Timeline | None:
    line = record.samples.memory if record.samples else None
    return line if drawable(line) else None
