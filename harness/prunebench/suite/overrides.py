"""`--set KEY=VALUE`: changes to a suite from the command line.

A key is a path such as `calibration.windows`; lists take an index, and models and methods their name too
(`methods.wanda.sparsity`). Values are YAML, read as in the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.plugin.suite_keys import RECOVERY
from prunebench.suite import yaml
from prunebench.suite.source import SET, Source


def override(source: Source, assignments: Sequence[str]) -> Source:
    """The suite with these `KEY=VALUE` changes, and with comments at the end of its text that say so.

    Raises PrunebenchError naming the assignment that cannot be made.
    """
    if not assignments:
        return source
    data, where = copy.deepcopy(source.data), dict(source.where)
    for assignment in assignments:
        _Assignment(data, where, f"{SET}{assignment}").make(assignment)
    said = "".join(
        f"# {SET}{assignment}\n".replace("\n", "\\n", assignment.count("\n"))
        for assignment in assignments
    )
    text = f"{source.text.rstrip()}\n\n# Changed on the command line:\n{said}"
    return replace(source, text=text, data=data, where=where)


@dataclass(frozen=True)
class _Assignment:
    """One change; ``data`` and ``where`` are changed in place."""

    data: dict[str, Any]
    where: dict[yaml.Path, str]
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
        for old in [old for old in self.where if old[: len(path)] == path]:
            del self.where[old]
        for end in range(1, len(path) + 1):  # mappings made on the way are this assignment's too
            self.where.setdefault(path[:end], self.label)

    def assign(self, rest: str, value: Any) -> yaml.Path:
        path: yaml.Path = ()
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

    def with_keys(self, value: Any, path: yaml.Path) -> Any:
        """The value at ``path`` as something that has keys, its short forms written out."""
        if path in {("models",), ("methods",)} and isinstance(value, str | dict):
            for old in [old for old in self.where if old[:1] == path and len(old) > 1]:
                self.where[(*path, 0, *old[1:])] = self.where.pop(old)
            return [value]
        if len(path) == 2 and isinstance(value, str):
            if path[0] == "models":
                return {"model": value}
            if path[0] == "methods":
                return {value: None}
        recovery = (
            path[:1] == ("methods",)
            and path[3:4] == (RECOVERY,)
            and all(isinstance(key, int) for key in path[4:])
        )
        if recovery and isinstance(value, str):
            return {value: None}
        if value is None:
            return {}
        if not isinstance(value, dict | list):
            raise PrunebenchError(
                f"{self.label}: {'.'.join(map(str, path))} is {value!r} and has no keys"
            )
        return value

    def step(self, container: Any, path: yaml.Path, rest: str) -> tuple[str | int, str]:
        """The next step of the dotted key ``rest`` into ``container``, and what is left of it."""
        first, _, after = rest.partition(".")
        if isinstance(container, dict):
            known = _leading(container, rest)  # a key may hold dots itself
            return (known, rest[len(known) + 1 :]) if known else (first, after)
        if first.isdecimal():
            if int(first) >= len(container):
                here = ".".join(map(str, path))
                raise PrunebenchError(
                    f"{self.label}: {here} has {len(container)} items, counted from 0"
                )
            return int(first), after
        places = {
            name: index for index, entry in enumerate(container) for name in _names(entry, path)
        }
        name = _leading(places, rest)
        if name is None:
            raise PrunebenchError(
                f"{self.label}: no '{first}' in {'.'.join(map(str, path))}",
                hint=_known(first, places),
            )
        if sum(name in _names(entry, path) for entry in container) > 1:
            raise PrunebenchError(
                f"{self.label}: '{name}' stands several times in {path[0]}",
                hint=f"name its place, the first is 0: {path[0]}.{places[name]}.{rest}",
            )
        # the name of a method is also the key of its options
        return places[name], rest if path == ("methods",) else rest[len(name) + 1 :]


def _names(entry: Any, path: yaml.Path) -> set[str]:
    if path == ("methods",):
        return (
            {entry} if isinstance(entry, str) else set(entry) if isinstance(entry, dict) else set()
        )
    if path == ("models",):
        values = [entry.get("name"), entry.get("model")] if isinstance(entry, dict) else [entry]
        return {value for value in values if isinstance(value, str)}
    return set()


def _leading(names: Iterable[str], dotted: str) -> str | None:
    """The longest of ``names`` that ``dotted`` begins with."""
    found = [name for name in names if dotted == name or dotted.startswith(f"{name}.")]
    return max(found, key=len, default=None)


def _known(word: str, names: Iterable[str]) -> str:
    return did_you_mean(word, names) if names else "items of this list go by index, from 0"
