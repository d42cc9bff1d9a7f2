"""`profile.runtimes`: looked up and fanned out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prunebench.experiment.measures import LatencySpec
from prunebench.experiment.plugins import RuntimeRef
from prunebench.suite.lookup import Lookup


def runtime_refs(
    entries: Sequence[Any], latency: Sequence[LatencySpec], lookup: Lookup
) -> tuple[RuntimeRef, ...]:
    """Every runtime that the entries name; equal ones are one."""
    found: dict[str, RuntimeRef] = {}
    for index, entry in enumerate(entries):
        named = lookup.plugin(entry, ("profile", "runtimes", index), "runtime")
        for fields in () if named is None else lookup.combinations(named):
            ref = RuntimeRef(**fields)
            found.setdefault(json.dumps(ref.identity(), sort_keys=True), ref)
    if found and not any(shape.batch_size == 1 for shape in latency):
        lookup.problems.add(
            ("profile", "runtimes"),
            "a runtime is timed at the shapes with batch size 1, and the suite has none",
            "add for example {prompt: 64, new_tokens: 32, batch_size: 1} to profile.latency",
        )
    return tuple(found.values())
