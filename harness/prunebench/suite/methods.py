"""`methods:` of a suite: each with its options, its allocation, its text and its recovery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench.errors import first_line
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

    from prunebench.plugin.registry import PluginEntry
    from prunebench.suite.yaml import KeyPath

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


class Needs(NamedTuple):
    """What a method or an allocation needs."""

    text: bool
    """Whether some options of it read calibration text."""
    reads_text: bool
    """Whether it reads text with the options that it has: LLM-Pruner by weight norms does not."""
    uses_seed: bool
    """Whether the seed decides what it does beyond the sample of the text."""


def needs(plugin: Any, ref: MethodRef | AllocationRef) -> Needs:
    """What a plugin's class needs with the options of ``ref``; raises what its code raises."""
    options = plugin.Options.model_validate(ref.options)
    return Needs(
        bool(plugin.needs_calibration),
        bool(plugin.needs_calibration_for(options)),
        bool(plugin.uses_seed_for(options)),
    )


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
    fields = lookup.combinations(named, ALLOCATION, CALIBRATION, RECOVERY)
    settings = [MethodRef(**each) for each in fields]
    own = _own_calibration(named, settings, spread, lookup, texts)
    repairs = _recoveries(named, lookup, texts)
    for method in settings:
        for allocation in spread:
            if allocation is None or allocations.check_pair(
                named.entry,
                method,
                lookup.registry["allocation"][allocation.name],
                path,
                lookup,
            ):
                for repair in repairs:
                    yield Treatment(method, repair, own, allocation)


def _own_calibration(
    named: NamedPlugin,
    settings: list[MethodRef],
    spread: list[AllocationRef | None],
    lookup: Lookup,
    texts: Texts,
) -> tuple[CalibrationSpec, ...] | None:
    """The method's own calibration text, None if it uses the suite's or none."""
    # An allocation such as OWL needs text even for a method that needs none.
    kinds = lookup.registry["allocation"]
    using: list[tuple[PluginEntry, MethodRef | AllocationRef]]
    using = [(named.entry, one) for one in settings]
    using += [(kinds[one.name], one) for one in spread if one is not None]
    readers = [ref.name for entry, ref in using if _reads_text(entry, ref, named.path, lookup)]
    # Wrong options are a problem already; right ones may need text all the same.
    if not settings and named.entry.value.needs_calibration:
        readers.append(named.name)
    if CALIBRATION in named.options:
        path = (*named.path, CALIBRATION)
        if not readers:
            what = f"'{named.name}' looks at no text"
            if named.entry.value.needs_calibration:
                what += " with these options"
            lookup.problems.add(path, what, "leave `calibration` out of its options")
        return texts.own_calibration(named.options[CALIBRATION], path)
    if readers and not texts.has_calibration:
        lookup.problems.add(
            named.path,
            f"'{readers[0]}' needs calibration and the suite has none",
            "add for example calibration: {corpus: boolq-passages, windows: 16, length: 512}",
        )
    return None


def _reads_text(
    entry: PluginEntry, ref: MethodRef | AllocationRef, path: KeyPath, lookup: Lookup
) -> bool:
    try:
        return needs(entry.value, ref).reads_text
    except Exception as error:  # the plugin's own code
        said = f"{type(error).__name__}: {first_line(error)}"
        lookup.problems.add(path, f"{entry.distribution} cannot say what it needs: {said}")
        return bool(entry.value.needs_calibration)


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
    removes = named.entry.value.structure
    for repair in found:
        kind = None if repair is None else lookup.registry["recovery"][repair.name].value
        if kind is not None and kind.replaces_layers and removes and "layers" not in removes:
            lookup.problems.add(
                path,
                f"'{kind.name}' replaces removed layers, and '{named.name}' removes none",
                "use it behind a method that removes layers, such as llm-streamline",
            )
            break
    return found
