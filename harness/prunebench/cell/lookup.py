"""The plugins that a cell names, found in the registry of the process that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.errors import PrunebenchError

if TYPE_CHECKING:
    from prunebench.experiment.plugins import PluginRef
    from prunebench.plugin.registry import Kind, Registry

FILE_SUFFIX = ".py"
"""Ends the distribution's name of a plugin that is a single file; its version is the hash of its content."""


def plugin_of(ref: PluginRef, kind: Kind, registry: Registry) -> Any:
    """An instance of what ``ref`` names, with its options.

    Raises PrunebenchError where no plugin registers it, and where a single file has changed since the cell was planned.
    """
    entry = registry[kind].get(ref.name)
    single = ref.distribution.endswith(FILE_SUFFIX)
    if entry is None:
        problems = [p.message for p in registry.problems if p.distribution == ref.distribution]
        way = (
            f"give --plugin {ref.distribution}"
            if single
            else f"install {ref.distribution} {ref.version}"
        )
        raise PrunebenchError(
            f"no plugin registers the {kind} '{ref.name}'"
            + (f": {'; '.join(problems)}" if problems else ""),
            hint=f"{way}; `prunebench plugins` lists what is there",
        )
    if single and entry.version != ref.version:
        raise PrunebenchError(
            f"{entry.origin} is not the file that the cell was planned with ({entry.version}, then {ref.version})",
            hint="run the suite again: its cells are new ones",
        )
    return entry.value(entry.value.Options.model_validate(ref.options))
