"""Memory over time as small multiples: a picture a cell, all on the same axes, with the phases as bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.figures import sparklines as strips
from prunebench_report.text import clean, size

if TYPE_CHECKING:
    from prunebench.record.memory import Timeline
    from prunebench.record.record import Record

MOST = 12
"""Cells that are drawn; the cards have the others."""
WIDTH = 320
HEIGHT = 90


def section(records: Sequence[Record], named: Mapping[str, str]) -> dict[str, Any] | None:
    """The pictures, and how many cells have none here; ``named`` has each cell's name. None without a timeline."""
    known = [(record, line) for record in records if (line := _line(record)) is not None]
    if not known:
        return None
    picked = _spread([record for record, _ in known])
    lines = [(record, line) for record, line in known if record.id in picked]
    shared = [line for _, line in lines]
    pictures = [
        {
            "id": record.id,
            "name": clean(named[record.id]),
            "peak": _peak(line),
            "line": strips.timeline(line, beside=shared, width=WIDTH, height=HEIGHT),
        }
        for record, line in sorted(lines, key=lambda one: one[0].cell.method.name != "dense")
    ]
    gpu = any(line.gpu_bytes for line in shared)
    return {"pictures": pictures, "left_out": len(known) - len(pictures), "gpu": gpu}


def _line(record: Record) -> Timeline | None:
    line = record.samples.memory if record.samples else None
    return line if strips.drawable(line) else None


def _spread(records: Sequence[Record]) -> set[str]:
    """The ids of at most `MOST`: the first of every method, then the second, ... in the order of the table."""
    seen: dict[str, int] = {}
    ranked = []
    for place, record in enumerate(records):
        method = record.cell.method.name
        seen[method] = seen.get(method, 0) + 1
        ranked.append((method != "dense", seen[method], place, record.id))
    return {cell for *_, cell in sorted(ranked)[:MOST]}


def _peak(line: Timeline) -> str:
    """'peak 1.73 GB in perplexity'."""
    index = max(range(len(line.rss_bytes)), key=line.rss_bytes.__getitem__)
    time = line.time_s[index]
    phase = next((span.phase for span in line.phases if span.start_s <= time <= span.end_s), None)
    return clean(f"peak {size(line.rss_bytes[index])}" + (f" in {phase}" if phase else ""))
