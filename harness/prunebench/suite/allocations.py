"""`allocation:` among a method's options: names and options looked up, lists fanned out, pairings checked for sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunebench.experiment.plugins import AllocationRef, MethodRef
from prunebench.suite.options import combinations, each_or_none, look_up, name_and_options
from prunebench.suite.problems import Problems

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry, Registry
    from prunebench.suite.yaml import Path


def expand(
    value: Any, path: Path, registry: Registry, problems: Problems
) -> Iterator[AllocationRef | None]:
    """The allocations that ``value`` at ``path`` names, None for none; what is wrong goes to ``problems``."""
    for entry, here in each_or_none(value, path, "allocation", problems):
        if entry is None:
            yield None
            continue
        named = name_and_options(
            entry, here, problems, noun="allocation", example="{owl: {spread: 0.1}}"
        )
        if named is None:
            continue
        name, options = named
        at = (*here, name) if isinstance(entry, dict) else here
        registered = look_up(
            name, registry["allocation"], at, registry, problems, noun="allocation"
        )
        if registered is None:
            continue
        for fields in combinations(registered, options, at, problems):
            yield AllocationRef(**fields)


def check_pair(
    registered: PluginEntry,
    method: MethodRef,
    allocation: AllocationRef | None,
    path: Path,
    problems: Problems,
) -> bool:
    """Whether the method, with these options, can go by an allocation; if not, that goes to ``problems``."""
    if allocation is None:
        return True
    try:
        reason = registered.value.refuses_allocation(
            registered.value.Options.model_validate(method.options)
        )
    except Exception as error:  # the plugin's own code
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        reason = f"{registered.distribution} cannot say whether that makes sense: {said}"
    if reason is not None:
        problems.add(
            path,
            f"'{method.label}' takes no allocation: {reason}",
            "leave `allocation` out, and give settings that take one an entry of their own",
        )
    return reason is None
