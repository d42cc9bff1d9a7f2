"""Find an engine by name and give it its options."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunebench.engine.local import LocalEngine
from prunebench.engine.ray.engine import RayEngine
from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.plugin import NAME
from prunebench.plugin.describe import options_of
from prunebench.plugin.option_values import first_fault, read_text_options
from prunebench.plugin.registry import PluginEntry

if TYPE_CHECKING:
    from prunebench.plugin.api.engine import Engine
    from prunebench.plugin.registry import Registry


def built_in() -> list[PluginEntry]:
    """The engines that need no plugin, in the form in which a plugin's engine is registered."""
    own = version(NAME)
    return [
        PluginEntry("engine", engine.name, engine, NAME, own, engine.__module__)
        for engine in (LocalEngine, RayEngine)
    ]


def choose(name: str, given: Mapping[str, Any], registry: Registry) -> Engine:
    """The engine called ``name`` with the options ``given``, as text or as values.

    Raises PrunebenchError for an unknown name and for wrong options.
    """
    engines = {entry.name: entry.value for entry in [*built_in(), *registry["engine"].values()]}
    if name not in engines:
        known = f"known: {', '.join(sorted(engines))}"
        raise PrunebenchError(
            f"there is no engine '{name}'", hint=f"{did_you_mean(name, engines)} ({known})"
        )
    kind: type[Engine] = engines[name]
    try:
        options = read_text_options(kind.Options, given)
    except ValidationError as error:
        where, message = first_fault(error)
        known = ", ".join(option.name for option in options_of(kind.Options)) or "none"
        raise PrunebenchError(
            f"engine '{name}': {where}: {message}",
            hint=f"its options: {known}; `prunebench plugins show {name}`",
        ) from error
    return kind(options)
