"""What the commands that take a suite have in common: the SUITE argument, its options, and the plan they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.store.run_folder import Plan
    from prunebench.suite.load import Suite

F = TypeVar("F", bound=Callable[..., Any])


def plugin_option(function: F) -> F:
    """Adds --plugin FILE, which is in force while the command runs."""
    return click.option(
        "--plugin",
        multiple=True,
        metavar="FILE",
        expose_value=False,
        is_eager=True,
        callback=_load_files,
        help="A plugin that is a single .py file. Repeatable.",
    )(function)


def _load_files(context: click.Context, _: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from prunebench.plugin.files import with_files

        context.with_resource(with_files(files))


def suite_options(function: F) -> F:
    """Adds SUITE, --plugin, --out, --set, --only and --skip: parameters `suite`, `out`, `overrides`, `only`, `skip`."""
    decorators = (
        click.argument("suite"),
        plugin_option,
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="Run folder.  [default: runs/<name of the suite>]",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change the suite: calibration.windows=8, methods.wanda.sparsity=[0.5,2:4]. Repeatable.",
        ),
        click.option(
            "--only",
            multiple=True,
            metavar="PATTERN",
            help="Keep cells by method, label ('wanda*2:4*'), model or id; dense stays. Repeatable.",
        ),
        click.option(
            "--skip", multiple=True, metavar="PATTERN", help="Leave such cells out. Repeatable."
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def load_plan(
    suite: str, out: Path | None, overrides: Sequence[str], only: Sequence[str], skip: Sequence[str]
) -> tuple[Suite, Plan, Path, Registry]:
    """The suite, its plan, the run folder, and the plugins that it was planned with. Raises PrunebenchError."""
    from prunebench.plugin.host import load_plugins
    from prunebench.suite.load import load_suite
    from prunebench.suite.plan import plan

    registry = load_plugins()
    loaded = load_suite(suite, registry=registry, overrides=overrides)
    return loaded, plan(loaded, registry, only, skip), out or Path("runs") / loaded.name, registry
