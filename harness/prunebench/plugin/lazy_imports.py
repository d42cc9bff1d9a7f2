"""Let a plugin write `import torch` at its top without loading torch before it is used.

Listing plugins and planning a suite need only the name and the options of a method, and importing
torch takes seconds.
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
    """Imports the module of its name when the first attribute is used, and gives its attributes."""

    def __getattr__(self, attribute: str) -> Any:
        # Make room for the real module: `import_module` would find this placeholder and recurse.
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


@contextmanager
def heavy_imports_later() -> Iterator[None]:
    """Inside the block, `import torch` binds a placeholder, unless torch is already loaded."""
    placeholders = {}
    for name in HEAVY:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            module = _Later(name)
            module.__spec__ = spec  # find_spec raises ValueError for a loaded module without one
            sys.modules[name] = placeholders[name] = module
    try:
        yield
    finally:
        # Later imports, in any module, get the real thing; plugins keep their placeholder.
        for name, module in placeholders.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
