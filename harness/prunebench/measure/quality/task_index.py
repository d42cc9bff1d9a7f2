"""The tasks, groups and tags that the installed lm-eval knows, without importing it.

lm-eval's own index parses some 14,000 YAML files, which takes a quarter of a minute; checking a
suite should take less than a second. This one finds the few top-level keys that matter in the text
of the files, and keeps the result in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir
from prunebench.model.files import atomic_replace

# `key: value` at the start of a line, with the items of a block list below it. Parsing the YAML
# would be right for every file and takes a hundred times as long.
_KEY = re.compile(
    r"^[\"']?(task|group|tag|include|class)[\"']?[ \t]*:(.*(?:\n[ \t]*-[ \t].*)*)", re.MULTILINE
)
_FORMAT = 1
"""Part of the cache's key: raise it if what is cached changes."""


@dataclass(frozen=True)
class TaskIndex:
    """Names that lm-eval knows. Paths are relative to ``folder``, its folder of tasks."""

    folder: Path
    version: str
    tasks: dict[str, str]
    """Each task's YAML file."""
    groups: dict[str, str]
    """Each group's YAML file."""
    tags: dict[str, list[str]]
    """Each tag's tasks."""

    @property
    def names(self) -> set[str]:
        return self.tasks.keys() | self.groups.keys() | self.tags.keys()

    def leaves(self, name: str) -> list[str]:
        """The tasks that ``name`` stands for, in lm-eval's order.

        A task stands for itself, a tag for its tasks, a group for the tasks of all its members.
        """
        return list(dict.fromkeys(leaf for leaf, _ in self._walk(name, ())))

    def folders(self, names: list[str]) -> list[Path]:
        """The folders whose files define these names and all tasks that they stand for.

        In reverse order, because lm-eval resolves a name that is defined twice differently: within
        one folder the first definition wins, among several folders the last one.
        """
        files = {file for name in names for _, chain in self._walk(name, ()) for file in chain}
        return [
            self.folder / top
            for top in sorted({Path(file).parts[0] for file in files}, reverse=True)
        ]

    def family(self, task: str) -> str:
        """The folder in which lm-eval defines a task, 'mmlu' for 'mmlu_anatomy'; '' if none."""
        return Path(self.tasks[task]).parts[0] if task in self.tasks else ""

    def _walk(self, name: str, chain: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(task, files that lead to it) for each task that ``name`` stands for."""
        if name in self.tasks:  # before groups and tags of the same name, as in lm-eval
            yield name, (*chain, self.tasks[name])
        elif name in self.groups and self.groups[name] not in chain:  # a group may contain itself
            file = self.groups[name]
            for member in _members(_parsed(self.folder / file).get("task")):
                yield from self._walk(member, (*chain, file))
        elif name in self.tags:
            for task in self.tags[name]:
                yield from self._walk(task, chain)


def task_index() -> TaskIndex:
    """The names of the installed lm-eval. Raises PrunebenchError if it is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    try:
        installed = version("lm_eval")
    except PackageNotFoundError:
        installed = None
    if spec is None or spec.origin is None or installed is None:
        raise PrunebenchError(
            "lm-eval is not installed, and tasks run through it", hint="pip install lm-eval"
        )
    folder = Path(spec.origin).resolve().parent / "tasks"
    key = hashlib.sha256(
        f"{_FORMAT} {folder} {installed} {folder.stat().st_mtime_ns}".encode()
    ).hexdigest()[:16]
    memo = cache_dir() / "lm-eval" / f"tasks-{key}.json"
    found = _remembered(memo)
    if found is None:
        found = _scan(folder)
        # If the cache cannot be written, the next look-up only takes longer.
        with contextlib.suppress(PrunebenchError), atomic_replace(memo) as aside:
            aside.write_text(json.dumps(found), encoding="utf-8")
    return TaskIndex(folder, installed, **found)


def _remembered(memo: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        found if isinstance(found, dict) and found.keys() == {"tasks", "groups", "tags"} else None
    )


def _scan(folder: Path) -> dict[str, Any]:
    tasks: dict[str, str] = {}
    groups: dict[str, str] = {}
    tags: dict[str, list[str]] = {}
    for path in sorted(Path(base, name) for base, _, names in os.walk(folder) for name in names):
        if path.suffix != ".yaml" or ".ipynb_checkpoints" in path.parts:
            continue
        keys = _keys(path, 0)
        file = path.relative_to(folder).as_posix()
        # A file with a class defines a task in Python; its group is no group of tasks.
        if "group" in keys and "class" not in keys:
            groups.setdefault(keys["group"][0], file)
        elif keys.get("task"):
            name = keys["task"][0]
            if tasks.setdefault(name, file) == file:
                for tag in keys.get("tag", []):
                    tags.setdefault(tag, []).append(name)
    return {
        "tasks": tasks,
        "groups": groups,
        "tags": {tag: sorted(names) for tag, names in tags.items()},
    }


def _keys(path: Path, depth: int) -> dict[str, list[str]]:
    """The values of the keys that name things in a file, or else in the files it includes."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {match[1]: _values(match[2]) for match in _KEY.finditer(text)}
    if depth < 8:
        for include in found.pop("include", []):
            found = {**_keys(path.parent / include, depth + 1), **found}
    return {key: values for key, values in found.items() if values}


def _values(text: str) -> list[str]:
    """The words in 'a', '"a"', '[a, b]', or in a block list."""
    words = []
    for line in text.splitlines():
        bare = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("- ").strip("[] ")
        words += [word.strip(" \"'") for word in bare.split(",")]
    return [word for word in words if word]


class _Loader(yaml.SafeLoader):
    """Reads a task file without loading the Python functions that its tags name."""


_Loader.add_multi_constructor("!", lambda *_: None)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _members(listed: Any) -> Iterator[str]:
    """The names in a group's `task:` list, including those in groups defined inline."""
    for item in listed if isinstance(listed, list) else [listed]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from [item["group"]] if isinstance(item.get("group"), str) else []
            yield from _members(item.get("task"))
