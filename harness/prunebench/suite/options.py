"""A plugin's options in a suite: lists fan out, and every combination is checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prunebench.errors import first_line
from prunebench.plugin.option_values import read_options
from prunebench.schema import AddedLater
from prunebench.suite.problems import EMPTY, Problems, fields_of

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry
    from prunebench.suite.yaml import KeyPath

Axis = list[tuple[str, "KeyPath", Any]]
"""The values of one option, each with the option's name and its own path below the options."""


def combinations(
    entry: PluginEntry, options: Mapping[str, Any], path: KeyPath, problems: Problems
) -> Iterator[dict[str, Any]]:
    """The fields of a `PluginRef` for each combination of the listed options.

    Combinations that the plugin refuses go to ``problems``.
    """
    model: type[BaseModel] = entry.value.Options
    for combination in itertools.product(*_axes(model, options, path, problems)):
        given = {key: value for key, _, value in combination}
        folders = {key: problems.source.base((*path, *inside)) for key, inside, _ in combination}
        try:
            read = read_options(model, given, folders)
            complete = read.model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            written = {key: inside for key, inside, _ in combination}
            fields = fields_of(model)
            problems.add_validation(
                path,
                given,
                error,
                lambda at: None if at else fields,  # noqa: B023 - called at once
                noun="option",
                written=written,
            )
            continue
        except Exception as error:  # the plugin's own code
            said = f"{type(error).__name__}: {first_line(error)}"
            problems.add(path, f"{entry.distribution} cannot check these options: {said}")
            continue
        yield {
            "name": entry.name,
            "distribution": entry.distribution,
            "version": entry.version,
            "options": complete,
            "given": {key: _shown(value, complete.get(key, value)) for key, value in given.items()},
            "later": _later_defaults(model, complete),
        }


def _axes(
    model: type[BaseModel], options: Mapping[str, Any], path: KeyPath, problems: Problems
) -> list[Axis]:
    """One axis of the grid for each option."""
    depths = {
        (field.alias or name): depth(field.annotation) for name, field in model.model_fields.items()
    }
    axes: list[Axis] = []
    for key, value in options.items():
        # A list fans out only if it is deeper than the option's type: `layers: [1, 2]` is one
        # value of list[int], `layers: [[1], [2]]` is two.
        if not isinstance(value, list) or _nesting(value) <= depths.get(key, 0):
            axes.append([(key, (key,), value)])
        elif value:
            axes.append([(key, (key, index), item) for index, item in enumerate(value)])
        else:
            problems.add(
                (*path, key),
                EMPTY,
                "give at least one value, or leave the key out",
            )
    return axes


def _shown(written: Any, used: Any) -> Any:
    """What a label shows: the value as it is used (0.5 for 0.50), but no file's whole content."""
    return written if isinstance(written, str) and isinstance(used, dict | list) else used


def _later_defaults(model: type[BaseModel], complete: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that are marked with `AddedLater` and have their default."""
    return tuple(
        key
        for name, field in model.model_fields.items()
        if any(isinstance(mark, AddedLater) for mark in field.metadata)
        and complete[key := field.alias or name]
        == field.get_default(call_default_factory=True, validated_data={})
    )


def depth(annotation: Any) -> int:
    """How many lists deep a type is: list[int] is 1, float is 0.

    A list that is no deeper is one value, and a deeper one fans out.
    """
    origin = get_origin(annotation) or annotation
    if origin is dict:
        return 0
    inner = max((depth(argument) for argument in get_args(annotation)), default=0)
    return inner + (isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset))


def _nesting(value: Any) -> int:
    """How many lists deep a value is."""
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list) else 0
