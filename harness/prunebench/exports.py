"""Import the public names of a package when they are first used, so that the package loads fast.

The names are listed once, in the stub `__init__.pyi` that type checkers read too, one on each line:
`from MODULE import NAME as NAME`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(
    package: str, init: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The module functions `__getattr__` and `__dir__`, and `__all__`, of the package at ``init``."""
    homes = _homes(Path(init).with_suffix(".pyi"))
    names = sorted(homes)

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return look_up, lambda: names, names


def _homes(stub: Path) -> dict[str, str]:
    """The module of each name."""
    homes = {}
    for line in stub.read_text(encoding="utf-8").splitlines():
        if line.startswith("from "):
            _, module, _, name, *_ = line.split()
            homes[name] = module
    return homes
