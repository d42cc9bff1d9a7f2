"""`allocation:` beside a method's options: looked up, fanned out, checked against the method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunebench.errors import first_line
from prunebench.experiment.plugins import AllocationRef, MethodRef
from prunebench.plugin.api.sparsity import share_of
from prunebench.suite.lookup import Lookup

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


def check_pair(
    entry: PluginEntry, method: MethodRef, allocation: PluginEntry, path: KeyPath, lookup: Lookup
) -> bool:
    """Whether a method accepts an allocation with these options; if not, that is a problem."""
    problems = lookup.problems
    pattern = method.options.get("sparsity")
    # Whether it does can depend on the options: `scope: global` leaves nothing to decide.
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
    elif isinstance(pattern, str) and not allocation.value.divides_patterns():
        problems.add(
            path,
            f"'{allocation.name}' divides shares, and '{method.label}' prunes {pattern}",
            f"leave `allocation` out, or give `sparsity` as a share such as {share_of(pattern):g}",
        )
        return False
    return reason is None
