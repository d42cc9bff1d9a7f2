"""A plugin's options as a suite writes them: a name or a mapping, lists fanned out, every combination validated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prunebench.errors import did_you_mean
from prunebench.suite.problems import Problems, absent, fields_of

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry, Registry
    from prunebench.suite.yaml import Path


def name_and_options(
    entry: Any, path: Path, problems: Problems, *, noun: str, example: str
) -> tuple[str, dict[str, Any]] | None:
    """What an entry names: `wanda`, or `wanda: {sparsity: 0.5}`. What is wrong with it goes to ``problems``.

    ``noun`` is what the entry should be ('method'), ``example`` one with options.
    """
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not entry:
        problems.add(
            path, f"{entry!r} is no {noun}", f"write a name, or a name and its options: {example}"
        )
        return None
    if len(entry) > 1:
        first, second, *_ = entry
        problems.add(
            path,
            f"'{first}' and '{second}' stand in one entry",
            f"begin each {noun} with its own `- `, and indent options below `{first}:`",
        )
        return None
    name, options = next(iter(entry.items()))
    if options is not None and not isinstance(options, dict):
        problems.add(
            (*path, name),
            f"options are a mapping, found {options!r}",
            f"for example {name}: {{OPTION: VALUE}}",
        )
        return None
    return name, options or {}


def each_or_none(
    value: Any, path: Path, noun: str, problems: Problems
) -> Iterator[tuple[Any, Path]]:
    """The entries of ``value``, which is one or a list of them, each with its place; null, for no ``noun``, is one too."""
    if value == []:
        problems.add(
            path, "an empty list makes no cells", f"write null for no {noun}, or leave the key out"
        )
    if isinstance(value, list):
        yield from ((entry, (*path, place)) for place, entry in enumerate(value))
    else:
        yield value, path


def look_up(
    name: str,
    known: Mapping[str, PluginEntry],
    path: Path,
    registry: Registry,
    problems: Problems,
    *,
    noun: str,
) -> PluginEntry | None:
    """What is registered as ``name`` among ``known``; None, and a problem noted at ``path``, where nothing is."""
    found = known.get(name)
    if found is None:
        problems.add(
            path, f"unknown {noun} '{name}'", absent(name, did_you_mean(name, known), registry)
        )
    return found


def combinations(
    registered: PluginEntry, options: dict[str, Any], path: Path, problems: Problems
) -> Iterator[dict[str, Any]]:
    """The fields of a `PluginRef` for each combination of the listed options."""
    model: type[BaseModel] = registered.value.Options
    fields = fields_of(model)
    depths = {
        (field.alias or name): _depth(field.annotation)
        for name, field in model.model_fields.items()
    }
    axes: list[list[tuple[str, Path, Any]]] = []
    for key, value in options.items():
        if not isinstance(value, list) or _nesting(value) <= depths.get(key, 0):
            axes.append([(key, (key,), value)])
        elif value:
            axes.append([(key, (key, place), item) for place, item in enumerate(value)])
        else:
            problems.add(
                (*path, key),
                "an empty list makes no cells",
                "give at least one value, or leave the key out",
            )
    for combination in itertools.product(*axes):
        given = {key: value for key, _, value in combination}
        try:
            # as JSON: strict about types, yet lists may be tuples and text may be an enumeration or a path
            complete = model.model_validate_json(json.dumps(given), strict=True).model_dump(
                mode="json", by_alias=True
            )
        except ValidationError as error:
            places = {key: inside for key, inside, _ in combination}
            problems.add_validation(
                path, given, error, lambda at: None if at else fields, noun="option", places=places
            )
            continue
        except Exception as error:  # the plugin's own code
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            problems.add(path, f"{registered.distribution} cannot check these options: {said}")
            continue
        yield {
            "name": registered.name,
            "distribution": registered.distribution,
            "version": registered.version,
            "options": complete,
            "given": {key: complete.get(key, value) for key, value in given.items()},
        }


def _depth(annotation: Any) -> int:
    """How many lists a type is: list[int] is 1, float is 0."""
    origin = get_origin(annotation) or annotation
    if origin is dict:
        return 0
    inner = max((_depth(argument) for argument in get_args(annotation)), default=0)
    return inner + (isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset))


def _nesting(value: Any) -> int:
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list) else 0
