"""All that is wrong with a suite, found in one go: one line each, with file, line, key and the nearest valid spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prunebench.errors import PrunebenchError, did_you_mean, one_line
from prunebench.suite.source import Source
from prunebench.suite.yaml import Path

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry

Known = Callable[[Path], Mapping[str, str | None] | None]
"""The keys that may stand at a path, with their descriptions; None where anything may."""


class Problems:
    """Collects what is wrong with one suite."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[PrunebenchError] = []

    def add(self, path: Path, message: str, hint: str | None = None) -> None:
        written, place = self.source.found(path)
        name = dotted(written)
        said = one_line(f"{place}: {name}: {message}" if name else f"{place}: {message}")
        error = PrunebenchError(said, hint=None if hint is None else one_line(hint))
        if str(error) not in map(str, self.errors):
            self.errors.append(error)

    def add_validation(
        self,
        path: Path,
        value: Any,
        error: ValidationError,
        known: Known,
        *,
        noun: str = "key",
        places: Mapping[str, Path] | None = None,
    ) -> None:
        """The errors that pydantic found in ``value``, which stands at ``path``.

        ``places`` says where the value of a key stands in the file if that is not simply below the key.
        """
        merged: dict[Path, tuple[list[str], str | None]] = {}
        for detail in error.errors():
            inside = _existing(detail, value)
            message, hint = _reworded(detail, inside, known, noun)
            messages, _ = merged.setdefault(inside, ([], hint))
            if message not in messages:
                messages.append(message)
        for inside, (messages, hint) in merged.items():
            if places and inside and isinstance(inside[0], str):
                inside = (*places.get(inside[0], inside[:1]), *inside[1:])  # noqa: PLW2901
            self.add((*path, *inside), ", or ".join(messages), hint)

    def stop(self) -> None:
        """Raise all that was found as one PrunebenchError, one line each in the order of the file, if anything was."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise PrunebenchError("\n".join(map(str, sorted(self.errors, key=self.line))))

    def line(self, error: PrunebenchError) -> int:
        match = re.match(rf"{re.escape(self.source.file)}:(\d+): ", error.message)
        return int(match[1]) if match else 0


def absent(name: str, hint: str | None, registry: Registry) -> str | None:
    """The hint for a name that no plugin registered: ``hint``, unless a plugin that is not loaded may be the reason."""
    for problem in registry.problems:
        if problem.plugin == name:
            return f"the plugin '{name}' of {problem.distribution} is not loaded: {problem.message}"
    unloaded = ", ".join(problem.plugin for problem in registry.problems)
    if not unloaded or (hint or "").startswith("did you mean"):
        return hint
    return f"{hint}; plugins that are not loaded: {unloaded}"


def dotted(path: Path) -> str:
    """'calibration.windows', 'models[1].dtype', 'methods.wanda.sparsity[0]' (a method's place is left out)."""
    text = ""
    for place, key in enumerate(path):
        if isinstance(key, str):
            text += f".{key}" if text else key
        elif not (path[0] == "methods" and place == 1 and len(path) > 2):
            text += f"[{key}]"
    return text


def fields_of(model: type[BaseModel]) -> dict[str, str | None]:
    """The keys of a pydantic model, as they are written, with their descriptions."""
    return {field.alias or name: field.description for name, field in model.model_fields.items()}


def _existing(detail: ErrorDetails, value: Any) -> Path:
    """Where an error is in terms of ``value``: without the indices and type names that validation put in between."""
    path: Path = ()
    location = detail["loc"]
    if detail["type"] == "missing":
        location = location[:-1]
    for key in location:
        inside = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if inside or (isinstance(value, dict) and key in value):
            value = value[key]
        elif isinstance(key, int):
            continue  # a single value that stands for a list of one
        else:
            break
        path = (*path, key)
    return path


def _reworded(detail: ErrorDetails, path: Path, known: Known, noun: str) -> tuple[str, str | None]:
    kind, found = detail["type"], detail["input"]
    if kind == "missing":
        key = str(detail["loc"][-1])
        return f"'{key}' is missing", _description(path, key, known)
    if kind == "extra_forbidden":
        key = str(path[-1])
        return f"unknown {noun} '{key}'", did_you_mean(key, known(path[:-1]) or {})
    if kind in {"value_error", "assertion_error"}:
        return re.sub(r"^(Value|Assertion) error, ", "", detail["msg"]), None
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
        return f"unknown value {_shown(found)}", did_you_mean(str(found), choices)
    if kind == "too_short" and found == []:
        return "an empty list makes no cells", "give at least one value, or leave the key out"
    if kind == "bool_type" and str(found).lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"'{found}' is text in YAML 1.2", "write true or false"
    if kind == "model_type":
        hint = "write null for none" if str(found) in {"no", "none", "off"} else None
        return f"a mapping of keys is wanted, found {_shown(found)}", hint
    named = path
    while named and isinstance(named[-1], int):
        named = named[:-1]
    hint = _description(named[:-1], str(named[-1]), known) if named else None
    if kind == "string_pattern_mismatch":
        return f"{_shown(found)} is not valid", hint
    return f"{detail['msg'].replace('Input should', 'should')}, found {_shown(found)}", hint


def _description(path: Path, key: str, known: Known) -> str | None:
    return (known(path) or {}).get(key)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value).replace("None", "null")
    return text if len(text) <= 60 else f"{text[:57]}..."
