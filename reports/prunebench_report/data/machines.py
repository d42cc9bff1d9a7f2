"""The machines that records name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.text import clean, shorten, size

if TYPE_CHECKING:
    from prunebench.record.record import Record

_LONGEST = 300


def machines(records: Sequence[Record]) -> list[str]:
    """One line for each machine that the records name, in order of appearance."""
    return list(dict.fromkeys(line for record in records if (line := machine(record))))


def machine(record: Record) -> str | None:
    """What identifies a machine; not what varies from cell to cell, like load and free memory."""
    provenance = record.provenance
    parts = []
    if cpu := provenance.get("cpu"):
        parts.append(str(cpu))
    if cores := provenance.get("cpu_cores_usable") or provenance.get("cpu_cores_logical"):
        parts.append(f"{cores} cores")
    # Rounded by `size`, so that a few reserved pages do not make another machine.
    if isinstance(memory := provenance.get("memory_bytes"), int | float):
        parts.append(f"{size(memory)} memory")
    for gpu in provenance.get("gpus") or []:
        parts.append(str(gpu.get("name")) if isinstance(gpu, Mapping) else str(gpu))
    return shorten(clean(" · ".join(parts)), _LONGEST) or None
