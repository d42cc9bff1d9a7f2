"""Where the numbers come from: machine, versions and whatever else the records name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.text import clean, shorten

if TYPE_CHECKING:
    from prunebench.record.record import Record

_LONGEST_FACT = 600


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted names and short texts, in their order."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else clean(str(key)))
        return flat
    if value is None or value in ({}, []):
        return {prefix: "not available"}
    # Lists of plain values read better without brackets and quotes.
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        text = ", ".join(str(one) for one in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return {prefix: shorten(clean(text), _LONGEST_FACT)}


def split_facts(records: Sequence[Record]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The facts that are the same in all records, and the other facts of each record id."""
    flat = {record.id: flatten(record.provenance) for record in records}
    keys = list(dict.fromkeys(key for facts in flat.values() for key in facts))
    shared = {
        key: next(iter(flat.values()))[key]
        for key in keys
        if all(key in facts for facts in flat.values())
        and len({facts[key] for facts in flat.values()}) == 1
    }
    own = {
        cell: {key: value for key, value in facts.items() if key not in shared}
        for cell, facts in flat.items()
    }
    return shared, own


def layer_locations(record: Record) -> str | None:
    """How many decoder layers lay on which device; None if the model was not split."""
    devices = record.provenance.get("placement")
    if not isinstance(devices, Mapping) or not devices:
        return None
    words = {"disk": "on disk", "cpu": "in host memory"}
    parts = [
        f"{count} layers {words.get(str(device), f'on {device}')}"
        for device, count in devices.items()
    ]
    return clean(", ".join(parts))


def tool_version(records: Sequence[Record]) -> str | None:
    """The first version of prunebench that the records name."""
    versions = (record.provenance.get("prunebench") for record in records)
    return next((clean(str(version)) for version in versions if version), None)


def slow_governor(records: Sequence[Record]) -> str | None:
    """The first CPU frequency governor other than 'performance'; None if there is no such."""
    governors = (record.provenance.get("cpu_governor") for record in records)
    return next(
        (str(governor) for governor in governors if governor and governor != "performance"), None
    )
