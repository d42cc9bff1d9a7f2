"""The I/O floor of every cell, by the best memory bandwidth that was measured on its device.

Each cell measures the bandwidth for itself, and on a busy machine one finds half of what another
finds. The floor is the least time that a token can take, so the best of them counts for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.machines import machine

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record

_Device = tuple[str | None, str]


def generation_floors(records: Sequence[Record]) -> Mapping[str, list[GenerationIO]]:
    """For each record id its I/O floors, one for each latency; empty if it has none."""
    # Two passes: the best of a device is known only after its last cell.
    best: dict[_Device, GenerationIO] = {}
    cells: dict[_Device, int] = {}
    for record in records:
        for index, one in enumerate(_own(record)):
            key = _device(record)
            # A cell measures once, whatever the number of its latencies.
            cells[key] = cells.get(key, 0) + (index == 0)
            known = best.get(key)
            if known is None or one.bandwidth_bytes_per_s > known.bandwidth_bytes_per_s:
                best[key] = one
    return {
        record.id: [_at(one, best[_device(record)], cells[_device(record)]) for one in _own(record)]
        for record in records
    }


def _own(record: Record) -> list[GenerationIO]:
    return record.io.generation if record.io else []


def _device(record: Record) -> _Device:
    return machine(record), record.cell.device


def _at(one: GenerationIO, best: GenerationIO, cells: int) -> GenerationIO:
    """``one`` at the bandwidth of ``best``, which is the best of ``cells`` cells."""
    bandwidth = best.bandwidth_bytes_per_s
    floor = (one.weight_bytes + one.kv_cache_bytes) / bandwidth
    source = best.bandwidth_source
    return one.model_copy(
        update={
            "bandwidth_bytes_per_s": bandwidth,
            "bandwidth_source": f"{source}; the best of {cells} cells" if cells > 1 else source,
            "floor_s": floor,
            "utilisation": floor / one.measured_s if one.measured_s else None,
        }
    )
