"""Plugins that a suite names: `wanda`, or `wanda: {sparsity: 0.5}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.errors import did_you_mean
from prunebench.suite.effects import effective
from prunebench.suite.options import combinations
from prunebench.suite.problems import EMPTY, Problems, hint_for_unknown

if TYPE_CHECKING:
    from prunebench.plugin.registry import Kind, PluginEntry, Registry
    from prunebench.suite.yaml import KeyPath

EXAMPLES: Mapping[Kind, str] = {
    "method": "{wanda: {sparsity: 0.5}}",
    "allocation": "{owl: {spread: 0.1}}",
    "recovery": "{lora: {rank: 8}}",
    "metric": "{kl-divergence: {data: {corpus: my.txt}}}",
    "runtime": "{llama-cpp: {precision: q8_0}}",
}
"""An entry with options, for the hint of one that is written wrongly."""


@dataclass(frozen=True)
class NamedPlugin:
    """A registered plugin, with the options that a suite gives it."""

    entry: PluginEntry
    options: Mapping[str, Any]
    path: KeyPath
    """Its name in the suite; its options are below."""

    @property
    def name(self) -> str:
        return self.entry.name


@dataclass(frozen=True)
class Lookup:
    """Looks plugins up for one suite; everything that is wrong goes to ``problems``."""

    registry: Registry
    problems: Problems

    def plugin(self, written: Any, path: KeyPath, kind: Kind) -> NamedPlugin | None:
        """The plugin that the entry ``written`` at ``path`` names; None if there is none."""
        named = self._name_and_options(written, path, kind)
        if named is None:
            return None
        name, options = named
        # A method is named below its entry in either form: errors say 'methods.wanda'.
        at = (*path, name) if isinstance(written, dict) or kind == "method" else path
        entry = self.registry[kind].get(name)
        if entry is None:
            hint = did_you_mean(name, self.registry[kind])
            self.problems.add(
                at, f"unknown {kind} '{name}'", hint_for_unknown(name, hint, self.registry)
            )
            return None
        return NamedPlugin(entry, options, at)

    def each_or_none(self, written: Any, path: KeyPath, kind: Kind) -> Iterator[NamedPlugin | None]:
        """The plugins that one entry, or a list of them, names; None for null: no plugin."""
        # null is a choice ("none"), an empty list is not: the grid would have no cell for it.
        if written == []:
            self.problems.add(
                path,
                EMPTY,
                f"write null for no {kind}, or leave the key out",
            )
        entries = (
            [((*path, index), entry) for index, entry in enumerate(written)]
            if isinstance(written, list)
            else [(path, written)]
        )
        for at, entry in entries:
            if entry is None:
                yield None
            elif (named := self.plugin(entry, at, kind)) is not None:
                yield named

    def combinations(self, named: NamedPlugin, *without: str) -> list[dict[str, Any]]:
        """The fields of a `PluginRef` for each combination of the listed options.

        Keys in ``without`` are beside the options and are the suite's own. Options that change
        nothing are problems or warnings, see `effective`.
        """
        options = {key: value for key, value in named.options.items() if key not in without}
        found = combinations(named.entry, options, named.path, self.problems)
        return effective(named.entry, found, named.path, self.problems)

    def _name_and_options(
        self, written: Any, path: KeyPath, kind: Kind
    ) -> tuple[str, dict[str, Any]] | None:
        if isinstance(written, str):
            return written, {}
        if not isinstance(written, dict) or not written:
            hint = f"write a name, or a name and its options: {EXAMPLES[kind]}"
            self.problems.add(path, f"{written!r} is no {kind}", hint)
            return None
        # The options were indented as deep as the name, or a `- ` is missing.
        if len(written) > 1:
            first, second, *_ = written
            self.problems.add(
                path,
                f"'{first}' and '{second}' are in one entry",
                f"begin each {kind} with its own `- `, and indent options below `{first}:`",
            )
            return None
        [(name, options)] = written.items()
        if options is not None and not isinstance(options, dict):
            self.problems.add(
                (*path, name),
                f"options are a mapping, found {options!r}",
                f"for example {name}: {{OPTION: VALUE}}",
            )
            return None
        return name, options or {}
