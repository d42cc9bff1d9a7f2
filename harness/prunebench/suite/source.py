"""A suite's text: found by path or by the name of a shipped suite, read and parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.suite import yaml

SET = "--set "


@dataclass(frozen=True)
class Source:
    """The plain data of a suite and where each piece of it stands: 'FILE:LINE', or '--set KEY=VALUE'."""

    file: str
    folder: Path
    text: str
    data: dict[str, Any]
    where: dict[yaml.Path, str]

    def found(self, path: yaml.Path) -> tuple[yaml.Path, str]:
        """``path`` as the source writes it, and the nearest place.

        An index that the source does not have is left out: a single value may stand for a list of one.
        """
        written: yaml.Path = ()
        place = f"{self.file}:1"
        for key in path:
            if (*written, key) in self.where:
                place = self.where[*written, key]
            elif isinstance(key, int):
                continue
            written = (*written, key)
        return written, place

    def base(self, path: yaml.Path) -> Path:
        """What a relative file name at ``path`` is relative to: the suite's folder, or here if from the command line."""
        return Path.cwd() if self.found(path)[1].startswith(SET) else self.folder


def shipped() -> dict[str, Path]:
    """The suites that come with prunebench, by name; those in a folder have its name before theirs: 'papers/wanda'."""
    package = Path(__file__).resolve().parents[1]
    for folder in (
        package / "suites",
        package.parents[1] / "suites",
    ):  # a wheel, an editable checkout
        if folder.is_dir():
            found = {
                path.relative_to(folder).with_suffix("").as_posix(): path
                for path in folder.rglob("*.yaml")
            }
            return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))
    return {}


def read(path_or_name: str | Path) -> Source:
    """Read a suite. Raises PrunebenchError for a file that is missing, not UTF-8, not YAML, or no mapping."""
    path = _find(str(path_or_name))
    file = next(
        (f"{name}.yaml" for name, ours in shipped().items() if ours == path), str(path_or_name)
    )
    try:
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
    where = {key: f"{file}:{line}" for key, line in document.lines.items()}
    return Source(file, path.resolve().parent, text, document.data, where)


def source_of(data: Mapping[str, Any], name: str) -> Source:
    """A suite that is already data; ``name`` stands for the file in errors, paths are relative to here.

    Its text is JSON, which is YAML too. Keys and values become what JSON can hold.
    """
    text = json.dumps(data, indent=1, default=str)
    return Source(name, Path.cwd(), f"{text}\n", json.loads(text), {})


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"


def _find(given: str) -> Path:
    path = Path(given).expanduser()
    ours = shipped()
    named = path.suffix not in {".yaml", ".yml"}
    bare = named and (
        path.name == given or given.partition("/")[0] in {name.partition("/")[0] for name in ours}
    )
    if named and given in ours:
        return ours[given]
    if path.exists():
        return path
    near = (
        did_you_mean(given, ours)
        if bare
        else "give the path of a YAML file, or the name of a shipped suite"
    )
    if not bare and path.suffix not in {".yaml", ".yml"} and path.with_suffix(".yaml").is_file():
        near = did_you_mean(given, [str(path.with_suffix(".yaml"))])
    raise PrunebenchError(
        f"there is no suite '{given}'" if bare else f"there is no suite file {given}", hint=near
    )
