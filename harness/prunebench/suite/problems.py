"""The problems of one suite, collected so that they are reported at once.

Each is one line with file, line, key, what is wrong, and the nearest valid spelling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prunebench.errors import PrunebenchError, did_you_mean, one_line
from prunebench.suite.source import Source
from prunebench.suite.yaml import KeyPath

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry

Known = Callable[[KeyPath], Mapping[str, str | None] | None]
"""The keys that are allowed at a path, with their descriptions; None if every key is."""

EMPTY = "an empty list makes no cells"


class Problems:
    """Collects what is wrong with one suite."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[PrunebenchError] = []
        self.warnings: list[str] = []
        """What is probably a mistake, although the suite can run; lines as those of errors."""

    def add(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        """Note what is wrong at ``path``; the same problem is noted once."""
        error = self._error(path, message, hint)
        if str(error) not in map(str, self.errors):
            self.errors.append(error)

    def warn(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        """Note what is probably a mistake at ``path``; the same is noted once."""
        said = str(self._error(path, message, hint))
        if said not in self.warnings:
            self.warnings.append(said)

    def _error(self, path: KeyPath, message: str, hint: str | None) -> PrunebenchError:
        written, location = self.source.locate(path)
        name = dotted(written)
        said = one_line(f"{location}: {name}: {message}" if name else f"{location}: {message}")
        # Names in a suite may hold line breaks; a problem must stay one line.
        return PrunebenchError(said, hint=None if hint is None else one_line(hint))

    def add_validation(
        self,
        path: KeyPath,
        value: Any,
        error: ValidationError,
        known: Known,
        *,
        noun: str = "key",
        written: Mapping[str, KeyPath] | None = None,
    ) -> None:
        """Note the errors that pydantic found in ``value``, which is at ``path``.

        ``noun`` is what a key of ``value`` is called. ``written`` has the path of a key's value
        below ``path`` if it is another than the key itself: an item of a list that fans out.
        """
        # Pydantic reports every member of a union that failed: one problem with several messages.
        merged: dict[KeyPath, tuple[list[str], str | None]] = {}
        for detail in error.errors():
            inside = _existing(detail, value)
            message, hint = _reworded(detail, inside, known, noun)
            messages, _ = merged.setdefault(inside, ([], hint))
            if message not in messages:
                messages.append(message)
        for inside, (messages, hint) in merged.items():
            below = inside
            if written and inside and isinstance(inside[0], str):
                below = (*written.get(inside[0], inside[:1]), *inside[1:])
            self.add((*path, *below), ", or ".join(messages), hint)

    def stop(self) -> None:
        """Raise everything that was found as one PrunebenchError, in the order of the file."""
        if len(self.errors) == 1:
            raise self.errors[0]  # with its hint as a hint, not as a part of the message
        if self.errors:
            raise PrunebenchError("\n".join(map(str, sorted(self.errors, key=self._line))))

    def _line(self, error: PrunebenchError) -> int:
        match = re.match(rf"{re.escape(self.source.file)}:(\d+): ", error.message)
        return int(match[1]) if match else 0


def hint_for_unknown(name: str, hint: str | None, registry: Registry) -> str | None:
    """The hint for a name that no plugin registered.

    It is ``hint``, unless a plugin that could not be loaded may be the reason.
    """
    # Plugins are usually called like what they register.
    for problem in registry.problems:
        if problem.plugin == name:
            return f"the plugin '{name}' of {problem.distribution} is not loaded: {problem.message}"
    unloaded = ", ".join(problem.plugin for problem in registry.problems)
    if not unloaded or (hint or "").startswith("did you mean"):
        return hint
    return f"{hint}; plugins that are not loaded: {unloaded}"


def hint_of(error: PrunebenchError, name: Any, registry: Registry) -> str | None:
    """The hint of an error about ``name``, which may be a name that no plugin registered."""
    unknown = isinstance(name, str) and error.message.startswith("unknown ")
    return hint_for_unknown(name, error.hint, registry) if unknown else error.hint


def dotted(path: KeyPath) -> str:
    """A path as text: 'calibration.windows', 'models[1].dtype', 'methods.wanda.sparsity[0]'."""
    text = ""
    for position, key in enumerate(path):
        if isinstance(key, str):
            text += f".{key}" if text else key
        # A method's name says more than its index.
        elif not (path[0] == "methods" and position == 1 and len(path) > 2):
            text += f"[{key}]"
    return text


def fields_of(model: type[BaseModel]) -> dict[str, str | None]:
    """The keys of a pydantic model, as they are written, with their descriptions."""
    return {field.alias or name: field.description for name, field in model.model_fields.items()}


def _existing(detail: ErrorDetails, value: Any) -> KeyPath:
    """The path of an error in ``value``: without the indices and type names that pydantic adds."""
    path: KeyPath = ()
    location = detail["loc"]
    if detail["type"] == "missing":
        location = location[:-1]
    for key in location:
        inside = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if inside or (isinstance(value, dict) and key in value):
            value = value[key]
        elif isinstance(key, int):
            continue  # a single value, written instead of a list of one
        else:
            break
        path = (*path, key)
    return path


def _reworded(
    detail: ErrorDetails, path: KeyPath, known: Known, noun: str
) -> tuple[str, str | None]:
    """Pydantic's error as a message and a hint for people who know neither pydantic nor types."""
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
        return EMPTY, "give at least one value, or leave the key out"
    # YAML 1.1, which many know, reads these words as booleans.
    if kind == "bool_type" and str(found).lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"'{found}' is text in YAML 1.2", "write true or false"
    if kind == "model_type":
        hint = "write null for none" if str(found) in {"no", "none", "off"} else None
        return f"should be a mapping of keys, found {_shown(found)}", hint
    # The nearest key that has a description: list items have none.
    named = path
    while named and isinstance(named[-1], int):
        named = named[:-1]
    hint = _description(named[:-1], str(named[-1]), known) if named else None
    if kind == "string_pattern_mismatch":
        return f"{_shown(found)} is not valid", hint
    return f"{detail['msg'].replace('Input should', 'should')}, found {_shown(found)}", hint


def _description(path: KeyPath, key: str, known: Known) -> str | None:
    return (known(path) or {}).get(key)


def _shown(value: Any) -> str:
    """A value as YAML would show it, in at most 60 characters."""
    text = repr(value) if isinstance(value, str) else str(value).replace("None", "null")
    return text if len(text) <= 60 else f"{text[:57]}..."
