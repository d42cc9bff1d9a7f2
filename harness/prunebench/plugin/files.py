"""Plugins that are one file: named on the command line, loaded like an installed one, known by the hash of their content.

The files travel in the environment, so that the processes of the cells load them too.
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

from prunebench.errors import PrunebenchError

VARIABLE = "PRUNEBENCH_PLUGIN_FILES"


@dataclass(frozen=True)
class PluginFile:
    """A file that stands for an installed plugin: its name for the distribution's, its content's hash for the version."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def origin(self) -> tuple[str, str]:
        """Distribution and version."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            return self.path.name, f"unreadable: {error.strerror}"
        return self.path.name, f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"

    def load(self) -> ModuleType:
        """Run the file as a module. Raises what it raises."""
        place = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        name = f"prunebench_plugin_{self.name.replace('-', '_')}_{place}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise PrunebenchError(
                f"{self.path} is no Python file", hint="a plugin's file ends with .py"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pydantic and pickle look their classes up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def plugin_files() -> list[PluginFile]:
    """The files that this process should load beside the installed plugins."""
    return [
        PluginFile(Path(path)) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path
    ]


@contextmanager
def with_files(files: Iterable[str | Path]) -> Iterator[None]:
    """Within, this process and those that it starts load these files as well.

    Raises PrunebenchError where one is not there or cannot be named in the environment.
    """
    before = os.environ.get(VARIABLE)
    paths = [str(Path(file).expanduser().resolve()) for file in files]
    for path in paths:
        if not Path(path).is_file() or not path.endswith(".py"):
            raise PrunebenchError(
                f"there is no Python file {path}", hint="name the .py file of a plugin"
            )
        if os.pathsep in path:
            raise PrunebenchError(
                f"{path} has a '{os.pathsep}' in its name", hint="rename the folder or the file"
            )
    together = dict.fromkeys([*(before or "").split(os.pathsep), *paths])
    os.environ[VARIABLE] = os.pathsep.join(filter(None, together))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
