"""Import the public names of a package when they are first used, so that the package loads fast.

The names are listed once, in the stub `__init__.pyi` that type checkers read too, one on each line:
`from MODULE import NAME as NAME`.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # `typing`, which has it too, is half of what the import would take
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def lazy_exports(
    package: str, init: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The module functions `__getattr__` and `__dir__`, and `__all__`, of the package at ``init``."""
    homes = _homes(f"{init.removesuffix('.py')}.pyi")
    names = sorted(homes)

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return look_up, lambda: names, names


def _homes(stub: str) -> dict[str, str]:
    """The module of each name."""
    homes = {}
    # `pathlib` would double what `import prunebench` costs.
    with open(stub, encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("from "):
                _, module, _, name, *_ = line.split()
                homes[name] = module
    return homes
