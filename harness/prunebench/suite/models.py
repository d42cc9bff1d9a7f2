"""`models:` of a suite: every name looked up, every precision a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef, Placement
from prunebench.model.source import resolve
from prunebench.suite.lookup import Lookup
from prunebench.suite.problems import hint_of

if TYPE_CHECKING:
    from prunebench.suite.schema import ModelEntry


def model_refs(entries: Sequence[ModelEntry], lookup: Lookup) -> Iterator[ModelRef]:
    """The models that the entries name; those that cannot be found go to the problems."""
    problems = lookup.problems
    first: dict[str, int] = {}
    """The entry that first has a name."""
    for index, entry in enumerate(entries):
        path = ("models", index)
        try:
            ref = resolve(
                entry.model,
                base=problems.source.base(path),
                assets=lookup.registry.registered("model"),
                revision=entry.revision,
                dtype=entry.dtype[0],
                trust_remote_code=entry.trust_remote_code,
                placement=_placement(entry),
                name=entry.name,
            )
        except PrunebenchError as error:
            problems.add(path, error.message, hint_of(error, entry.model, lookup.registry))
            continue
        if ref.name in first:
            problems.add(
                path,
                f"models[{first[ref.name]}] is called '{ref.name}' too",
                f"give one of them another name: {{model: {entry.model}, name: ...}}",
            )
        first[ref.name] = index
        # Names are labels in tables: two precisions of a model need two.
        several = len(set(entry.dtype)) > 1
        for dtype in dict.fromkeys(entry.dtype):
            name = f"{ref.name} {dtype}" if several else ref.name
            yield ref.model_copy(update={"dtype": dtype, "name": name})


def _placement(entry: ModelEntry) -> Placement | None:
    """How the model is distributed over devices, if it is. Raises PrunebenchError."""
    if entry.device_map is None:
        if entry.max_memory is not None:
            raise PrunebenchError(
                "`max_memory` is for models with a device_map", hint="add `device_map: auto`"
            )
        return None
    sizes = sorted((str(device), size) for device, size in (entry.max_memory or {}).items())
    return Placement(device_map=entry.device_map, max_memory=tuple(sizes))
