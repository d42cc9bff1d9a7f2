"""`--set KEY=VALUE`: changes to a suite from the command line.

A key is a path such as `calibration.windows`. Lists take an index; models and methods also take
their name (`methods.wanda.sparsity`). Values are YAML, read as in the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean, printable
from prunebench.plugin.suite_keys import RECOVERY
from prunebench.suite import yaml
from prunebench.suite.source import SET, Source


def override(source: Source, assignments: Sequence[str]) -> Source:
    """The suite with these `KEY=VALUE` changes; comments at the end of its text list them.

    Raises PrunebenchError that names the assignment that cannot be made.
    """
    if not assignments:
        return source
    # A copy: the source stays as it was read.
    data, locations = copy.deepcopy(source.data), dict(source.locations)
    for assignment in assignments:
        _Assignment(data, locations, f"{SET}{assignment}").make(assignment)
    escaped = (printable(one.replace("\n", "\\n")) for one in assignments)
    comments = "".join(f"# {SET}{assignment}\n" for assignment in escaped)
    text = f"{source.text.rstrip()}\n\n# Changed on the command line:\n{comments}"
    return replace(source, text=text, data=data, locations=locations)


@dataclass(frozen=True)
class _Assignment:
    """One change; ``data`` and ``locations`` are changed in place."""

    data: dict[str, Any]
    locations: dict[yaml.KeyPath, str]
    label: str

    def make(self, assignment: str) -> None:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            raise PrunebenchError(
                f"{self.label}: not KEY=VALUE", hint="write for example --set calibration.windows=8"
            )
        value = yaml.parse_value(text, self.label)
        path = self.assign(key, value)
        # Lines of the file below this key are gone; mappings made on the way come from here, too.
        for old in [old for old in self.locations if old[: len(path)] == path]:
            del self.locations[old]
        for end in range(1, len(path) + 1):
            self.locations.setdefault(path[:end], self.label)

    def assign(self, rest: str, value: Any) -> yaml.KeyPath:
        """Set the dotted key ``rest`` to ``value``; returns its path."""
        path: yaml.KeyPath = ()
        container: Any = self.data
        while True:
            step, rest = self.step(container, path, rest)
            path = (*path, step)
            if not rest:
                container[step] = value
                return path
            below = container.get(step) if isinstance(container, dict) else container[step]
            container[step] = self.with_keys(below, path)
            container = container[step]

    def with_keys(self, value: Any, path: yaml.KeyPath) -> Any:
        """The value at ``path`` as something that has keys: short forms are written out."""
        if path in {("models",), ("methods",)} and isinstance(value, str | dict):
            self._make_list(path)
            return [value]
        if isinstance(value, str):
            if path[:1] == ("models",) and len(path) == 2:
                return {"model": value}
            if path[:1] == ("methods",) and (len(path) == 2 or _is_recovery(path)):
                return {value: None}
        if value is None:
            return {}
        if not isinstance(value, dict | list):
            raise PrunebenchError(
                f"{self.label}: {'.'.join(map(str, path))} is {value!r} and has no keys"
            )
        return value

    def _make_list(self, path: yaml.KeyPath) -> None:
        """Move the locations below ``path`` to below its first item."""
        depth = len(path)
        for old in [old for old in self.locations if old[:depth] == path and len(old) > depth]:
            self.locations[(*path, 0, *old[depth:])] = self.locations.pop(old)

    def step(self, container: Any, path: yaml.KeyPath, rest: str) -> tuple[str | int, str]:
        """The key or index that the dotted key ``rest`` begins with, and what follows it."""
        first, _, after = rest.partition(".")
        if isinstance(container, dict):
            known = _leading(container, rest)
            return (known, rest[len(known) + 1 :]) if known else (first, after)
        if first.isdecimal():
            if int(first) >= len(container):
                here = ".".join(map(str, path))
                raise PrunebenchError(
                    f"{self.label}: {here} has {len(container)} items, counted from 0"
                )
            return int(first), after
        return self.named_item(container, path, rest)

    def named_item(self, items: list[Any], path: yaml.KeyPath, rest: str) -> tuple[int, str]:
        """The index of the model or method whose name ``rest`` begins with, and what follows it."""
        indices = {name: index for index, entry in enumerate(items) for name in _names(entry, path)}
        name = _leading(indices, rest)
        if name is None:
            first = rest.partition(".")[0]
            raise PrunebenchError(
                f"{self.label}: no '{first}' in {'.'.join(map(str, path))}",
                hint=did_you_mean(first, indices)
                if indices
                else "items of this list have no names: give an index, from 0",
            )
        if sum(name in _names(entry, path) for entry in items) > 1:
            raise PrunebenchError(
                f"{self.label}: '{name}' is several times in {path[0]}",
                hint=f"give its index, the first is 0: {path[0]}.{indices[name]}.{rest}",
            )
        # A method's name is also the key of its options: the next step needs it again.
        return indices[name], rest if path == ("methods",) else rest[len(name) + 1 :]


def _is_recovery(path: yaml.KeyPath) -> bool:
    """Whether ``path`` is `methods.INDEX.NAME.recovery`, or an item of the list there."""
    return path[3:4] == (RECOVERY,) and all(isinstance(key, int) for key in path[4:])


def _names(entry: Any, path: yaml.KeyPath) -> set[str]:
    """What an item of the list at ``path`` is called in a key."""
    if path == ("methods",):
        return (
            {entry} if isinstance(entry, str) else set(entry) if isinstance(entry, dict) else set()
        )
    if path == ("models",):
        values = [entry.get("name"), entry.get("model")] if isinstance(entry, dict) else [entry]
        return {value for value in values if isinstance(value, str)}
    return set()


def _leading(names: Iterable[str], dotted: str) -> str | None:
    """The longest of ``names`` that ``dotted`` begins with: a name may contain dots itself."""
    found = [name for name in names if dotted == name or dotted.startswith(f"{name}.")]
    return max(found, key=len, default=None)
