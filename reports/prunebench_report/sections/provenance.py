"""Where the numbers come from: what all cells share once, what differs with the cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.text import clean, shorten, size

if TYPE_CHECKING:
    from prunebench.record.record import Record

_LIMIT = 600


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted names and short texts, in the order in which they stand."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else clean(str(key)))
        return flat
    if value is None or value in ({}, []):
        return {prefix: "not available"}
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        text = ", ".join(str(one) for one in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return {prefix: shorten(clean(text), _LIMIT)}


def split(records: Sequence[Record]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Facts that are the same in all records, and for each record id those that are not."""
    flat = {record.id: flatten(record.provenance) for record in records}
    keys = list(dict.fromkeys(key for facts in flat.values() for key in facts))
    shared = {
        key: next(iter(flat.values()))[key]
        for key in keys
        if all(key in facts for facts in flat.values())
        and len({facts[key] for facts in flat.values()}) == 1
    }
    return shared, {
        identity: {key: value for key, value in facts.items() if key not in shared}
        for identity, facts in flat.items()
    }


def placement(record: Record) -> str | None:
    """Where the decoder layers lay, in words; None for a model that was not to be spread."""
    places = record.provenance.get("placement")
    if not isinstance(places, Mapping) or not places:
        return None
    told = {"disk": "on disk", "cpu": "in host memory"}
    parts = [
        f"{count} layers {told.get(str(place), f'on {place}')}" for place, count in places.items()
    ]
    return clean(", ".join(parts))


def machines(records: Sequence[Record]) -> list[str]:
    """One line for each machine that the records name, in order of appearance."""
    return list(dict.fromkeys(line for record in records if (line := _machine(record.provenance))))


def _machine(provenance: Mapping[str, Any]) -> str | None:
    """What identifies the machine; what varies from cell to cell (load, free memory) is no part of it."""
    parts = []
    if cpu := provenance.get("cpu"):
        parts.append(str(cpu))
    if cores := provenance.get("cpu_cores_usable") or provenance.get("cpu_cores_logical"):
        parts.append(f"{cores} cores")
    if isinstance(memory := provenance.get("memory_bytes"), int | float):
        parts.append(f"{size(memory)} memory")
    for gpu in provenance.get("gpus") or []:
        parts.append(str(gpu.get("name")) if isinstance(gpu, Mapping) else str(gpu))
    return shorten(clean(" · ".join(parts)), 300) or None


def tool_version(records: Sequence[Record]) -> str | None:
    """The version of prunebench that the records name."""
    versions = (record.provenance.get("prunebench") for record in records)
    return next((clean(str(version)) for version in versions if version), None)


def slow_governor(records: Sequence[Record]) -> str | None:
    """The first CPU frequency governor that lets the clock sag, where one is named."""
    governors = (record.provenance.get("cpu_governor") for record in records)
    return next(
        (str(governor) for governor in governors if governor and governor != "performance"), None
    )
