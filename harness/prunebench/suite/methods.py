"""The methods of a suite: names and options looked up, lists of options fanned out, every combination validated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prunebench.cell.spec import MethodRef
from prunebench.errors import did_you_mean
from prunebench.suite.problems import Problems, absent, fields_of

if TYPE_CHECKING:
    from prunebench.plugin.host import Registered, Registry
    from prunebench.suite.yaml import Path

DENSE = "dense"


def needs_calibration(method: Any) -> bool:
    """Whether a Method class looks at calibration windows: it says so, or it asks for statistics of the inputs."""
    return bool(method.needs_calibration or getattr(method, "statistics", ()))


def outcome_varies(method: Any, *, sampled: bool) -> bool:
    """Whether the seed decides what a Method class does; ``sampled``: calibration windows are drawn by the seed."""
    return bool(method.uses_seed or (needs_calibration(method) and sampled))


def expand(entries: list[Any], registry: Registry, problems: Problems, *, calibrated: bool) -> list[MethodRef]:
    """All methods of a suite with complete options, in the order of the file, `dense` before them.

    ``entries`` are the items of `methods`. What is wrong with them goes to ``problems``.
    """
    refs: list[MethodRef] = []
    if DENSE not in registry.methods:
        problems.add(
            (),
            "the method 'dense', the baseline of every suite, is not available",
            absent(DENSE, None, registry),
        )
    else:
        refs += _grid(registry.methods[DENSE], {}, (), problems)
    for index, entry in enumerate(entries):
        path: Path = ("methods", index)
        named = _name_and_options(entry, path, problems)
        if named is None:
            continue
        name, options = named
        registered = registry.methods.get(name)
        if registered is None:
            problems.add(
                (*path, name), f"unknown method '{name}'", absent(name, did_you_mean(name, registry.methods), registry)
            )
            continue
        if needs_calibration(registered.value) and not calibrated:
            problems.add(
                (*path, name),
                f"'{name}' needs calibration and the suite has none",
                "add for example calibration: {corpus: boolq-passages, windows: 16, length: 512}",
            )
        refs += _grid(registered, options, (*path, name), problems)
    return refs


def _name_and_options(entry: Any, path: Path, problems: Problems) -> tuple[str, dict[str, Any]] | None:
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not entry:
        problems.add(
            path, f"{entry!r} is no method", "write a name, or a name and its options: {wanda: {sparsity: 0.5}}"
        )
        return None
    if len(entry) > 1:
        first, second, *_ = entry
        problems.add(
            path,
            f"'{first}' and '{second}' stand in one entry",
            f"begin each method with its own `- `, and indent options below `{first}:`",
        )
        return None
    name, options = next(iter(entry.items()))
    if options is not None and not isinstance(options, dict):
        problems.add(
            (*path, name), f"options are a mapping, found {options!r}", f"for example {name}: {{OPTION: VALUE}}"
        )
        return None
    return name, options or {}


def _grid(registered: Registered, options: dict[str, Any], path: Path, problems: Problems) -> Iterator[MethodRef]:
    """One MethodRef for each combination of the listed options."""
    model: type[BaseModel] = registered.value.Options
    fields = fields_of(model)
    depths = {(field.alias or name): _depth(field.annotation) for name, field in model.model_fields.items()}
    axes: list[list[tuple[str, Path, Any]]] = []
    for key, value in options.items():
        if not isinstance(value, list) or _nesting(value) <= depths.get(key, 0):
            axes.append([(key, (key,), value)])
        elif value:
            axes.append([(key, (key, place), item) for place, item in enumerate(value)])
        else:
            problems.add((*path, key), "an empty list makes no cells", "give at least one value, or leave the key out")
    for combination in itertools.product(*axes):
        given = {key: value for key, _, value in combination}
        try:
            # as JSON: strict about types, yet lists may be tuples and text may be an enumeration or a path
            complete = model.model_validate_json(json.dumps(given), strict=True).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            places = {key: inside for key, inside, _ in combination}
            problems.add_validation(path, given, error, lambda at: None if at else fields, noun="option", places=places)
            continue
        except Exception as error:  # the plugin's own code
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            problems.add(path, f"{registered.distribution} cannot check these options: {said}")
            continue
        yield MethodRef(
            name=registered.name,
            distribution=registered.distribution,
            version=registered.version,
            options=complete,
            given={key: complete.get(key, value) for key, value in given.items()},
        )


def _depth(annotation: Any) -> int:
    """How many lists a type is: list[int] is 1, float is 0."""
    origin = get_origin(annotation) or annotation
    if origin is dict:
        return 0
    inner = max((_depth(argument) for argument in get_args(annotation)), default=0)
    return inner + (isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset))


def _nesting(value: Any) -> int:
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list) else 0
