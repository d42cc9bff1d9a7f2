"""Plugins that are a single file: `--plugin FILE` loads it as if it were installed.

An environment variable names the files, so that the processes of the cells load them too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from prunebench.errors import PrunebenchError, printable
from prunebench.user_path import user_path

VARIABLE = "PRUNEBENCH_PLUGIN_FILES"


@dataclass(frozen=True)
class PluginFile:
    """A file in the role of an entry point: it has a name, a distribution, a version and `load`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def origin(self) -> tuple[str, str]:
        """Distribution and version: the name of the file, and the hash of its content.

        The version is part of a cell's id, so a changed file makes new cells.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            return printable(self.path.name), f"unreadable: {error.strerror}"
        return printable(self.path.name), f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"

    def load(self) -> ModuleType:
        """Run the file as a module. Raises what the file raises."""
        # Two files with one name in different folders must be two modules.
        path_hash = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]
        name = f"prunebench_plugin_{self.name.replace('-', '_')}_{path_hash}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise PrunebenchError(
                f"{self.path} is not a Python file", hint="the name of a plugin's file ends in .py"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pydantic and pickle look up the module's classes there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def plugin_files() -> list[PluginFile]:
    """The files that this process loads in addition to the installed plugins."""
    return [
        PluginFile(Path(path)) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path
    ]


@contextmanager
def with_files(files: Iterable[str | Path]) -> Iterator[None]:
    """Inside the block, this process and those that it starts load ``files`` as plugins.

    Raises PrunebenchError if a file does not exist, or if the environment cannot hold its name.
    """
    before = os.environ.get(VARIABLE)
    hint = "name the .py file of a plugin"
    paths = [str(user_path(file, what="the plugin", hint=hint).resolve()) for file in files]
    for path in paths:
        if not Path(path).is_file() or not path.endswith(".py"):
            raise PrunebenchError(f"there is no Python file {path}", hint=hint)
        if os.pathsep in path:
            raise PrunebenchError(
                f"{path} has a '{os.pathsep}' in its name", hint="rename the folder or the file"
            )
    # Blocks can be nested: add to the files that are set already.
    together = dict.fromkeys([*(before or "").split(os.pathsep), *paths])
    os.environ[VARIABLE] = os.pathsep.join(filter(None, together))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
