"""`--watch`: services that get every finished cell of a run, which built-in plugins do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

VARIABLE = "PRUNEBENCH_WATCH"
"""Names the services that are wanted; the plugins read it."""
SERVICES = ("mlflow", "wandb")
"""Each is the name of its Python module, and of the extra that installs it."""


def watch(context: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    """Ask for ``names`` while the command runs. Raises PrunebenchError if one is not installed."""
    from prunebench.errors import PrunebenchError

    for name in names:
        # Before the first cell: a plugin that raises stops nothing, so its figures would be lost.
        if importlib.util.find_spec(name) is None:
            raise PrunebenchError(
                f"{name} is not installed", hint=f"pip install 'prunebench[{name}]'"
            )
    if names:
        context.with_resource(_wanted(names))


@contextmanager
def _wanted(names: tuple[str, ...]) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ",".join(names)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
