"""Read the options that somebody gives to a plugin: everywhere as strictly as in a suite."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from prunebench.plugin.api.option_file import FOLDERS

M = TypeVar("M", bound=BaseModel)

LARGEST = 2**63 - 1
"""The largest number: what torch, numpy and readers of records can hold as an integer."""

NOWHERE: Mapping[str, Path] = MappingProxyType({})


def read_options(
    model: type[M],
    given: Mapping[str, Any],
    folders: Mapping[str, Path] = NOWHERE,
) -> M:
    """``given`` as ``model``. Raises ValidationError, also for numbers that no record can hold.

    ``folders``: for an option that names a file, what a relative name starts from.
    """
    try:
        return _checked(_strict(model, given, folders))
    except ValidationError:
        # JSON has one kind of number, so that 8.0 is an integer too. This is a second try, because
        # an option may be meant to be a whole float.
        whole = whole_numbers(given)
        if repr(whole) == repr(given):
            raise
        return _checked(_strict(model, whole, folders))


def _strict(model: type[M], given: Mapping[str, Any], folders: Mapping[str, Path]) -> M:
    # Strict JSON validation refuses a text for a number, yet takes a list for a tuple, and a text
    # for an enumeration or a path: YAML has neither.
    text, context = json.dumps(given, default=plain), {FOLDERS: folders}
    try:
        return model.model_validate_json(text, strict=True, context=context)
    except ValidationError as error:
        # Behind a validator of the whole model pydantic forgets that it reads JSON.
        data = json.loads(text)
        replaced = [_as_python(data, each) for each in error.errors()]
        if not any(replaced):
            raise
        return model.model_validate(data, strict=True, context=context)


def _as_python(data: Any, error: ErrorDetails) -> bool:
    """Replace a list in ``data`` by the tuple or set that the error asks for."""
    kind = {"tuple_type": tuple, "set_type": set, "frozen_set_type": frozenset}.get(error["type"])
    *above, last = error["loc"] or ("",)
    with suppress(KeyError, IndexError, TypeError):
        for key in above:
            data = data[key]
        if kind is not None and isinstance(data[last], list):
            data[last] = kind(data[last])
            return True
    return False


def read_text_options(model: type[M], given: Mapping[str, Any]) -> M:
    """As `read_options`, for values that may be the text of a command line: '2' is 2."""
    options = model.model_validate(dict(given))
    # To pydantic, True is also 1.
    taken = options.model_dump(by_alias=True)
    wrong = [
        _fault((name,), value, "should be a number")
        for name, value in given.items()
        if isinstance(value, bool) and not isinstance(taken.get(name), bool)
    ]
    return _checked(options, wrong)


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The option that is wrong, and what is wrong with it."""
    first = error.errors()[0]
    message = first["msg"].replace("Input should", "should").removeprefix("Value error, ")
    return ".".join(map(str, first["loc"])) or "options", message


def plain(value: Any) -> Any:
    """What Python callers may give, as JSON: an enumeration, a path, a number of numpy.

    Raises TypeError for anything else.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of an option")


def whole_numbers(value: Any) -> Any:
    """``value`` with 8 in place of 8.0."""
    if isinstance(value, Mapping):
        return {key: whole_numbers(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [whole_numbers(inside) for inside in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked(options: M, wrong: list[InitErrorDetails] | None = None) -> M:
    faults = [*(wrong or []), *_out_of_range((), options.model_dump(by_alias=True))]
    if faults:
        raise ValidationError.from_exception_data(type(options).__name__, faults)
    return options


def _out_of_range(path: tuple[str | int, ...], value: Any) -> Iterator[InitErrorDetails]:
    """Numbers that a cell cannot have: its id and its record are JSON, which has no infinity."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _out_of_range((*path, str(key)), inside)
    elif isinstance(value, list | tuple):
        for index, inside in enumerate(value):
            yield from _out_of_range((*path, index), inside)
    elif isinstance(value, float) and not math.isfinite(value):
        yield _fault(path, value, "should be a finite number")
    elif isinstance(value, int | float) and abs(value) > LARGEST:
        yield _fault(path, value, f"should be at most {LARGEST}, with either sign")


def _fault(path: tuple[str | int, ...], value: Any, message: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("out_of_range", f"Input {message}"),
        loc=path,
        input=value,
    )
