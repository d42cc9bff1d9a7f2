"""What plugins registered, by kind and name, and the problems met while loading them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pluggy

from prunebench.plugin import NAME
from prunebench.plugin.trace import traced

Kind = Literal[
    "method",
    "allocation",
    "recovery",
    "model",
    "corpus",
    "task data",
    "metric",
    "section",
    "engine",
    "runtime",
]
"""What a plugin can register; `prunebench.plugin.kinds` has the hook and the rules of each."""


@dataclass(frozen=True)
class PluginEntry:
    """One thing that a plugin registered, and where it comes from."""

    kind: Kind
    name: str
    value: Any
    """A class, or an object if the kind is a model, a corpus or task data."""
    distribution: str
    version: str
    origin: str
    """The path of the plugin's module."""

    @property
    def is_file(self) -> bool:
        """Whether somebody named its file with --plugin; the file's name is the distribution."""
        return self.distribution.endswith(".py")


@dataclass(frozen=True)
class PluginProblem:
    """Why a plugin, or one thing that it registers, cannot be used."""

    plugin: str
    """The name of its entry point."""
    distribution: str
    version: str
    cause: str
    details: str = ""
    """The traceback, if there is one."""
    status: Literal["problem", "disabled"] = "problem"
    hint: str | None = None
    """What mends it."""
    file: bool = False
    """Whether the plugin is a file that somebody named with --plugin."""

    @property
    def message(self) -> str:
        """The cause, with the hint in brackets."""
        return f"{self.cause} ({self.hint})" if self.hint else self.cause


class Registry(dict[Kind, dict[str, PluginEntry]]):
    """The entries of each kind by name, e.g. ``registry["method"]["wanda"]``.

    Every kind is there, also one that no plugin registers.
    """

    def __init__(
        self, entries: Iterable[PluginEntry] = (), problems: Iterable[PluginProblem] = ()
    ) -> None:
        super().__init__({kind: {} for kind in get_args(Kind)})
        for entry in entries:
            self[entry.kind][entry.name] = entry
        self.problems = list(problems)
        self.hooks = pluggy.PluginManager(NAME)  # for the observing hooks, after loading

    def entries(self) -> list[PluginEntry]:
        """The entries of all kinds."""
        return [entry for named in self.values() for entry in named.values()]

    def registered(self, kind: Kind) -> dict[str, Any]:
        """The classes or objects of one kind, by name, without where they come from."""
        return {name: entry.value for name, entry in self[kind].items()}

    def notify(self, hook: str, **facts: Any) -> None:
        """Call an observing hook of every plugin; if one raises, log that and call the others."""
        # Not `hooks.hook.x(...)`: pluggy stops at the first exception.
        for implementation in call_order(getattr(self.hooks.hook, hook)):
            try:
                given = [facts[name] for name in implementation.argnames]
                traced(hook, implementation.plugin_name, implementation.function, *given)
            except Exception:
                logging.getLogger(NAME).exception(
                    "%s of %s raised", hook, implementation.plugin_name
                )


def call_order(caller: pluggy.HookCaller) -> list[pluggy.HookImpl]:
    """A hook's implementations in the order in which pluggy calls them; `tryfirst` comes first."""
    return caller.get_hookimpls()[::-1]
