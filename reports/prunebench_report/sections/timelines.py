"""Memory over time as small multiples: one picture per cell, all on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.figures.sparklines import drawable, timeline
from prunebench_report.text import clean, size

if TYPE_CHECKING:
    from prunebench.record.memory import Timeline
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

MOST = 12
"""Cells that are drawn; the others have a picture in their card."""
WIDTH = 320
HEIGHT = 90


def section(given: ReportInput) -> dict[str, Any] | None:
    """The pictures, dense first, and how many cells have none here. None without a timeline."""
    known = [(record, line) for record in given.detailed if (line := _line(record)) is not None]
    if not known:
        return None
    picked = _pick([record for record, _ in known])
    lines = [(record, line) for record, line in known if record.id in picked]
    shared = [line for _, line in lines]
    pictures = [
        {
            "id": record.id,
            "name": clean(given.names[record.id]),
            "peak": _peak(line),
            # One scale for all, so that heights and widths can be compared.
            "line": timeline(line, beside=shared, width=WIDTH, height=HEIGHT),
        }
        for record, line in sorted(lines, key=lambda one: one[0].cell.method.name != "dense")
    ]
    gpu = any(line.gpu_bytes for line in shared)
    return {"pictures": pictures, "left_out": len(known) - len(pictures), "gpu": gpu}


def _line(record: Record) -> Timeline | None:
    line = record.samples.memory if record.samples else None
    return line if drawable(line) else None


def _pick(records: Sequence[Record]) -> set[str]:
    """The ids of at most `MOST` cells: dense, the first of every method, the second, ..."""
    seen: dict[str, int] = {}
    ranked = []
    for position, record in enumerate(records):
        method = record.cell.method.name
        seen[method] = seen.get(method, 0) + 1
        ranked.append((method != "dense", seen[method], position, record.id))
    return {cell for *_, cell in sorted(ranked)[:MOST]}


def _peak(line: Timeline) -> str:
    """'peak 1.73 GB in perplexity'."""
    index = max(range(len(line.rss_bytes)), key=line.rss_bytes.__getitem__)
    time = line.time_s[index]
    phase = next((span.phase for span in line.phases if span.start_s <= time <= span.end_s), None)
    return clean(f"peak {size(line.rss_bytes[index])}" + (f" in {phase}" if phase else ""))
