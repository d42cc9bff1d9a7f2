"""Say which line of a plugin is at fault when its code raises or returns something wrong."""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunebench.errors import PluginError, PrunebenchError

NOT_A_PLUGIN = frozenset({"prunebench", "builtins", "abc", "typing", "pydantic"})


@contextmanager
def plugin_code(plugin: Any) -> Iterator[None]:
    """Add the line of ``plugin``'s code, 'mine.py:17', to an error that is raised in the block.

    A PrunebenchError that is no PluginError stays as it is: the plugin itself explains what the
    user can do.
    """
    try:
        yield
    except PluginError as error:
        if error.place or (place := _raised_at(error, plugin)) is None:
            raise
        raise error.at(place=place) from error
    except PrunebenchError:
        raise
    except Exception as error:
        if place := _raised_at(error, plugin):
            error.add_note(place)
        raise


def returned_at(function: Callable[..., Any]) -> str | None:
    """The line of a function's only `return`, or else its first line; None if it has no file."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    lines = {
        each.positions.lineno
        for each in dis.get_instructions(code)
        if each.opname == "RETURN_VALUE" and each.positions is not None
    }
    [line] = lines if len(lines) == 1 else {code.co_firstlineno}
    return f"{Path(code.co_filename).name}:{line}"


def _raised_at(error: BaseException, plugin: Any) -> str | None:
    """The innermost line of the plugin's package in the traceback of ``error``."""
    of_plugin = type(plugin) if not isinstance(plugin, type) else plugin
    roots = {_root(base.__module__) for base in of_plugin.__mro__} - NOT_A_PLUGIN
    place: str | None = None
    innermost: BaseException | None = error
    while innermost is not None:
        places = [
            f"{Path(frame.f_code.co_filename).name}:{line}"
            for frame, line in traceback.walk_tb(innermost.__traceback__)
            if _root(frame.f_globals.get("__name__", "")) in roots
        ]
        # A PluginError is raised again with the linear's name: the first one knows the line.
        innermost = innermost.__cause__ if isinstance(innermost, PluginError) else None
        place = places[-1] if places else place
    return place


def _root(module: str) -> str:
    return module.partition(".")[0]
