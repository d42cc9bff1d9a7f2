"""`methods:` of a suite: each with its options, its allocation, its text and its recovery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.experiment.plugins import AllocationRef, MethodRef, RecoveryRef, label_of
from prunebench.experiment.text import CalibrationSpec
from prunebench.plugin.suite_keys import ALLOCATION, CALIBRATION, RECOVERY
from prunebench.suite import allocations, recoveries
from prunebench.suite.lookup import Lookup, NamedPlugin
from prunebench.suite.options import combinations
from prunebench.suite.problems import hint_for_unknown
from prunebench.suite.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

DENSE = "dense"


@dataclass(frozen=True)
class Treatment:
    """Everything that is done to a model before it is measured."""

    method: MethodRef
    recovery: RecoveryRef | None = None
    calibration: tuple[CalibrationSpec, ...] | None = None
    """The method's own calibration text; None if it uses the suite's."""
    allocation: AllocationRef | None = None

    @property
    def label(self) -> str:
        """The same as `Cell.label`."""
        return label_of(self.method, self.allocation, self.recovery)


def outcome_varies(plugin: Any, *, sampled: bool) -> bool:
    """Whether the seed decides what a method or an allocation does.

    ``sampled`` says whether the seed decides its calibration windows.
    """
    return bool(plugin.uses_seed or (plugin.needs_calibration and sampled))


def expand(entries: Sequence[Any], lookup: Lookup, texts: Texts) -> list[Treatment]:
    """The treatments of a suite in the order of the file, after `dense`, which is always there."""
    found = list(_dense(lookup))
    # The file may list `dense` as well: planning drops equal cells.
    for index, entry in enumerate(entries):
        named = lookup.plugin(entry, ("methods", index), "method")
        if named is not None:
            found += _treatments(named, lookup, texts)
    return found


def _dense(lookup: Lookup) -> Iterator[Treatment]:
    entry = lookup.registry["method"].get(DENSE)
    if entry is None:
        lookup.problems.add(
            (),
            "the method 'dense', the baseline of every suite, is not available",
            hint_for_unknown(DENSE, None, lookup.registry),
        )
        return
    for fields in combinations(entry, {}, (), lookup.problems):
        yield Treatment(MethodRef(**fields))


def _treatments(named: NamedPlugin, lookup: Lookup, texts: Texts) -> Iterator[Treatment]:
    path = (*named.path, ALLOCATION)
    spread: list[AllocationRef | None] = [None]
    if ALLOCATION in named.options:
        spread = list(allocations.expand(named.options[ALLOCATION], path, lookup))
    own = _own_calibration(named, spread, lookup, texts)
    repairs = _recoveries(named, lookup, texts)
    for fields in lookup.combinations(named, ALLOCATION, CALIBRATION, RECOVERY):
        method = MethodRef(**fields)
        for allocation in spread:
            if allocation is None or allocations.check_pair(
                named.entry, method, path, lookup.problems
            ):
                for repair in repairs:
                    yield Treatment(method, repair, own, allocation)


def _own_calibration(
    named: NamedPlugin, spread: list[AllocationRef | None], lookup: Lookup, texts: Texts
) -> tuple[CalibrationSpec, ...] | None:
    """The method's own calibration text, None if it uses the suite's or none."""
    # An allocation such as OWL needs text even for a method that needs none.
    readers = [named.name] if named.entry.value.needs_calibration else []
    readers += [
        allocation.name
        for allocation in spread
        if allocation and lookup.registry["allocation"][allocation.name].value.needs_calibration
    ]
    if CALIBRATION in named.options:
        path = (*named.path, CALIBRATION)
        if not readers:
            lookup.problems.add(
                path, f"'{named.name}' looks at no text", "leave `calibration` out of its options"
            )
        return texts.own_calibration(named.options[CALIBRATION], path)
    if readers and not texts.has_calibration:
        lookup.problems.add(
            named.path,
            f"'{readers[0]}' needs calibration and the suite has none",
            "add for example calibration: {corpus: boolq-passages, windows: 16, length: 512}",
        )
    return None


def _recoveries(named: NamedPlugin, lookup: Lookup, texts: Texts) -> list[RecoveryRef | None]:
    if RECOVERY not in named.options:
        return [None]
    path = (*named.path, RECOVERY)
    found = list(recoveries.expand(named.options[RECOVERY], path, lookup, texts))
    # A trained dense model would shift the baseline of every other cell.
    if named.name == DENSE and found != [None]:
        lookup.problems.add(
            path,
            "the dense model is the baseline of every cell, and takes no recovery",
            "for a trained control, write magnitude: {sparsity: 0, recovery: ...}",
        )
    return found
