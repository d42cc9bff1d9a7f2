"""A suite's text: found by its path or by the name of a shipped suite, read and parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.byte_path import path_text
from prunebench.errors import PrunebenchError, did_you_mean, first_line
from prunebench.plugin.option_values import plain
from prunebench.suite import yaml
from prunebench.user_path import user_path

SET = "--set "
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """The data of a suite, not checked yet."""

    file: str
    """Its name in errors."""
    folder: Path
    """What relative paths in it are relative to."""
    text: str
    data: dict[str, Any]
    locations: dict[yaml.KeyPath, str]
    """Where each key and list item is written: 'FILE:LINE', or '--set KEY=VALUE'."""

    def locate(self, path: yaml.KeyPath) -> tuple[yaml.KeyPath, str]:
        """``path`` as the source writes it, and the nearest location.

        An index that the source does not have is left out: a list of one may be written as its only
        item.
        """
        written: yaml.KeyPath = ()
        # What was not read from a file has no lines.
        location = f"{self.file}:1" if self.locations else self.file
        for key in path:
            if (*written, key) in self.locations:
                location = self.locations[*written, key]
            elif isinstance(key, int):
                continue
            written = (*written, key)
        return written, location

    def base(self, path: yaml.KeyPath) -> Path:
        """The folder that a relative file name at ``path`` starts from.

        It is the suite's folder, and the working folder if the name comes from the command line.
        """
        return Path.cwd() if self.locate(path)[1].startswith(SET) else self.folder


def shipped() -> dict[str, Path]:
    """The suites that come with prunebench, by name: 'quickstart', 'papers/wanda'."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel they are inside the package; in a checkout they are beside harness/.
    for folder in (package / "suites", package.parents[1] / "suites"):
        if folder.is_dir():
            found = {
                path.relative_to(folder).with_suffix("").as_posix(): path
                for path in folder.rglob("*.yaml")
            }
            return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))
    return {}


def read(path_or_name: str | Path) -> Source:
    """Read a suite.

    Raises PrunebenchError if the file is missing, is not UTF-8 or YAML, or holds no mapping.
    """
    path = _find(str(path_or_name))
    # Errors in a shipped suite name it as a user does, not by its path in site-packages.
    file = next(
        (f"{name}.yaml" for name, ours in shipped().items() if ours == path), str(path_or_name)
    )
    try:
        # "-sig": editors on Windows begin a file with a byte order mark.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PrunebenchError(
            f"{file}:{line}: not UTF-8 text", hint="save the file as UTF-8"
        ) from error
    except OSError as error:
        raise PrunebenchError(
            f"cannot read the suite {file}: {error.strerror}", hint="name a YAML file"
        ) from error
    document = yaml.parse(text, file)
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else f"a {_kind(document.data)}"
        raise PrunebenchError(
            f"{file}:1: a suite is a mapping of keys, this file is {found}",
            hint="begin with `name: my-suite`, then `models:` and `methods:`",
        )
    locations = {key: f"{file}:{line}" for key, line in document.lines.items()}
    return Source(file, path.resolve().parent, text, document.data, locations)


def source_of(data: Mapping[str, Any], name: str) -> Source:
    """A suite that is already data, with ``name`` as the file in errors.

    Its text is JSON, which is YAML too; values that JSON cannot hold become text. Relative paths
    start from the working folder. Raises PrunebenchError if a key is none of JSON, or a value
    contains itself.
    """
    try:
        text = json.dumps(data, default=_plain_or_text)
    except (TypeError, ValueError, RecursionError) as error:
        raise PrunebenchError(
            f"{name}: {first_line(error)}", hint="use texts, numbers, lists and dicts"
        ) from error
    values = _with_paths(json.loads(text), name)
    return Source(name, Path.cwd(), f"{json.dumps(values, indent=1)}\n", values, {})


def _with_paths(value: Any, name: str) -> Any:
    """``value`` with the paths in it that are not UTF-8 as `file:` URIs."""
    if isinstance(value, dict):
        return {key: _with_paths(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_paths(item, name) for item in value]
    try:
        return path_text(value) if isinstance(value, str) else value
    except UnicodeEncodeError as error:
        raise PrunebenchError(
            f"{name}: '{value}' holds half of a surrogate pair", hint="write both halves"
        ) from error


def _plain_or_text(value: Any) -> Any:
    try:
        return plain(value)
    except TypeError:
        return str(value)


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"


def _find(given: str) -> Path:
    """The file of a suite. Raises PrunebenchError if there is none."""
    hint = "give the path of a YAML file, or the name of a shipped suite"
    path = user_path(given, what="the suite", hint=hint)
    ours = shipped()
    may_be_name = path.suffix not in YAML_SUFFIXES
    if may_be_name and given in ours:
        return ours[given]
    if path.exists():
        return path
    # 'quickstrat' and 'papers/wnada' are misspelt names, './suites/mine' is a misspelt path.
    folders = {name.partition("/")[0] for name in ours}
    if may_be_name and (path.name == given or given.partition("/")[0] in folders):
        raise PrunebenchError(f"there is no suite '{given}'", hint=did_you_mean(given, ours))
    if may_be_name and path.with_suffix(".yaml").is_file():
        hint = did_you_mean(given, [str(path.with_suffix(".yaml"))])
    raise PrunebenchError(f"there is no suite file {given}", hint=hint)
