"""Where the numbers come from: machine, versions and whatever else the records name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.text import (
    MISSING,
    Facts,
    clean,
    finite,
    number,
    percent,
    rate,
    seconds,
    shorten,
    size,
)

if TYPE_CHECKING:
    from prunebench.record.record import Record

_LONGEST_FACT = 600
# How a name ends, and how its values read. Longer ends first: '_bytes_per_s' is not seconds.
_UNITS: dict[str, Callable[[float | None], str]] = {
    "_bytes_per_s": rate,
    "_bytes": size,
    "_percent": lambda value: percent(None if value is None else value / 100),
    "_seconds": seconds,
    "_s": seconds,
    "_w": lambda value: MISSING if value is None else f"{number(value)} W",
    "_mhz": lambda value: MISSING if value is None else f"{number(value)} MHz",
    "_hz": lambda value: MISSING if value is None else f"{number(value)} Hz",
}
# A number with more than eight digits after the point.
_LONG = re.compile(r"[-+]?\d+\.\d{9,}(e[-+]?\d+)?")
_MOST_MAPPINGS = 16


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted names and short texts, in their order."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else clean(str(key)))
        return flat
    if _is_short_table(value):
        several = len(value) > 1
        return {
            key: text
            for index, inner in enumerate(value)
            for key, text in flatten(inner, f"{prefix}[{index}]" if several else prefix).items()
        }
    if value is None or value in ({}, []):
        return {prefix: "not available"}
    # Lists of plain values read better without brackets and quotes.
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        text = ", ".join(str(one) for one in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return {prefix: shorten(clean(text), _LONGEST_FACT)}


def _is_short_table(value: Any) -> bool:
    """Whether ``value`` is a list of a few mappings, such as the GPUs of a machine."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_MAPPINGS:
        return False
    return all(isinstance(one, Mapping) and one for one in value)


def in_words(facts: Mapping[str, str]) -> Facts:
    """Facts for a reader: amounts in the unit that the end of their name says, without that end.

    'memory_bytes' 25276502016 is 'memory' 25.3 GB.
    """
    return [_in_unit(name, text) for name, text in facts.items()]


def _in_unit(name: str, text: str) -> tuple[str, str]:
    for end, unit in _UNITS.items():
        if name.endswith(end) and name != end:
            try:
                values = [finite(float(value.replace(",", ""))) for value in text.split(", ")]
            except ValueError:
                break
            return name.removesuffix(end), ", ".join(map(unit, values))
    return name, ", ".join(map(_readable, text.split(", "))) if _LONG.search(text) else text


def _readable(value: str) -> str:
    """A number with more digits than anyone reads in six; other text as it is."""
    if not _LONG.fullmatch(value):
        return value
    return f"{float(value):.6g}"


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
