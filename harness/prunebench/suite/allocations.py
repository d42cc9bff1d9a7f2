"""`allocation:` beside a method's options: looked up, fanned out, checked against the method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunebench.errors import first_line
from prunebench.experiment.plugins import AllocationRef, MethodRef
from prunebench.suite.lookup import Lookup
from prunebench.suite.problems import Problems

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry
    from prunebench.suite.yaml import KeyPath


def expand(written: Any, path: KeyPath, lookup: Lookup) -> Iterator[AllocationRef | None]:
    """The allocations that ``written`` at ``path`` names; None for null, which means none."""
    for named in lookup.each_or_none(written, path, "allocation"):
        if named is None:
            yield None
        else:
            for fields in lookup.combinations(named):
                yield AllocationRef(**fields)


def check_pair(entry: PluginEntry, method: MethodRef, path: KeyPath, problems: Problems) -> bool:
    """Whether a method accepts an allocation with these options; if not, that is a problem."""
    # Whether it does can depend on the options: N:M leaves an allocation nothing to decide.
    try:
        options = entry.value.Options.model_validate(method.options)
        reason = entry.value.refuses_allocation(options)
    except Exception as error:  # the plugin's own code
        said = f"{type(error).__name__}: {first_line(error)}"
        reason = f"{entry.distribution} cannot say whether that makes sense: {said}"
    if reason is not None:
        problems.add(
            path,
            f"'{method.label}' takes no allocation: {reason}",
            "leave `allocation` out, and give settings that take one an entry of their own",
        )
    return reason is None
