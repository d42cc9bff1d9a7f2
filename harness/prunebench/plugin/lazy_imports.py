"""Let a plugin say `import torch` without loading torch until something of it is used.

Listing plugins and planning a suite need a method's name and options only, and torch takes seconds to import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

HEAVY = ("torch", "transformers")


class _Later(ModuleType):
    """Stands for a module until an attribute is asked for; then imports it and passes everything on."""

    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


@contextmanager
def heavy_imports_later() -> Iterator[None]:
    """Within, `import torch` binds a stand-in; modules that are loaded already stay as they are."""
    standing_in = {}
    for name in HEAVY:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            module = _Later(name)
            module.__spec__ = spec
            sys.modules[name] = standing_in[name] = module
    try:
        yield
    finally:
        for name, module in standing_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
