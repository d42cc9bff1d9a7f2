"""Interpreters of our own, in which the working folder plays no part.

Python puts the working folder first on the path of `python -m` and `python -c`, so that a user's
`random.py` or `profile.py` there would be imported in place of the library's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a new interpreter, like `python -m MODULE ARGUMENTS`."""
    # -P: the working folder is not put on the path.
    return [sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str) -> list[str]:
    """The command that runs ``code`` in a new interpreter, like `python -c CODE`."""
    return [sys.executable, "-P", "-c", code]


def leave_working_folder(
    path: list[str] | None = None, environment: MutableMapping[str, str] | None = None
) -> None:
    """Take the working folder off this process's path, and off that of its children.

    It is there after `python -m prunebench`, and if PYTHONPATH has an empty part, as `:/opt/lib`
    has. A folder that PYTHONPATH names stays. ``path`` and ``environment`` are by default those of
    this process.
    """
    path = sys.path if path is None else path
    environment = os.environ if environment is None else environment
    parts = environment.get("PYTHONPATH", "").split(os.pathsep)
    named = [part for part in parts if part]
    if named != parts and "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(named)
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib might be the user's own
    except OSError:  # the folder was removed: nothing can be imported from it
        return
    if here in map(os.path.abspath, named):
        return
    # Installed packages come after the standard library; their folders stay, wherever we are.
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    end = path.index(library) if library in path else 0
    path[:end] = [entry for entry in path[:end] if entry not in {"", here}]
