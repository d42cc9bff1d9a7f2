"""Methods for methods: one that builds on others finds them by the names that suites use."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from prunebench.errors import did_you_mean
from prunebench.plugin.files import VARIABLE
from prunebench.plugin.host import RESTRICT, load_plugins

if TYPE_CHECKING:
    from prunebench.plugin.api.method import Method


def registered_method(name: str) -> type[Method]:
    """The pruning method that a plugin registers under this name.

    For a method with an option that names another one. Raises ValueError, as a validator of options
    should, with the nearest name if there is no such method.
    """
    methods = _methods(os.environ.get(RESTRICT), os.environ.get(VARIABLE))
    if name not in methods:
        hint = did_you_mean(name, methods)
        raise ValueError(f"no method '{name}' is registered" + (f"; {hint}" if hint else ""))
    return methods[name]


@lru_cache(maxsize=1)  # a suite asks for every combination of options
def _methods(restriction: str | None, files: str | None) -> dict[str, type[Method]]:
    """All methods by name, for these settings of the environment."""
    del restriction, files  # `load_plugins` reads them itself
    return load_plugins().registered("method")
