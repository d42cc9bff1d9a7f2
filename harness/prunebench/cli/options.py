"""What several commands have in common: --plugin, OPTION=VALUE, and the suite with its options."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from prunebench.cli import completion

LARGEST = 2**63 - 1
"""The largest whole number of an option; `prunebench.plugin.option_values` has the reason."""

TOKENS = 10_000_000
"""The most tokens, sequences or rounds, as in a suite."""

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """Seconds from 0 to a billion; not `nan`, which is neither below nor above a bound."""

    def __init__(self) -> None:
        super().__init__(0, 1e9)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("nan is not a number of seconds", param, ctx)
        return seconds


def plugin_option(function: F) -> F:
    """Add --plugin FILE, which is in force while the command runs."""
    return click.option(
        "--plugin",
        multiple=True,
        metavar="FILE",
        expose_value=False,
        # Eager: the file must be loaded before other options look up plugins by name.
        is_eager=True,
        callback=_load_files,
        help="A plugin that is a single .py file. Repeatable.",
    )(function)


def _load_files(context: click.Context, _: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from prunebench.plugin.files import with_files

        # Until the command ends: in tests several commands run in one process.
        context.with_resource(with_files(files))


def strict_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --strict."""
    return click.option(
        "--strict",
        is_flag=True,
        help="For CI: end with 4 if the report warns of something, or if a published figure that "
        "the suite expects is not reproduced.",
    )(function)


def plugin_words(plugin: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add [OPTION=VALUE]... for the plugin that the argument ``plugin`` names."""
    return click.argument(
        "options",
        nargs=-1,
        metavar="[OPTION=VALUE]...",
        shell_complete=completion.options_of(plugin),
    )


def assignments(words: tuple[str, ...]) -> dict[str, Any]:
    """OPTION=VALUE arguments by option; values are YAML. Raises PrunebenchError."""
    from prunebench.errors import PrunebenchError
    from prunebench.suite import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise PrunebenchError(
                f"'{word}' is no option", hint="write OPTION=VALUE, for example sparsity=0.5"
            )
        if key in found:
            raise PrunebenchError(f"'{key}' is given twice", hint="give each option once")
        found[key] = yaml.parse_value(text, word)
    return found


def suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add SUITE, --plugin, --out, --set, --only, --skip: the command gets one `request`."""

    @functools.wraps(function)
    def with_request(
        suite: str,
        out: Path | None,
        overrides: tuple[str, ...],
        only: tuple[str, ...],
        skip: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        from prunebench.app.plan import SuiteRequest

        return function(request=SuiteRequest(suite, out, overrides, only, skip), **rest)

    decorated: Callable[..., Any] = with_request
    # Decorators apply from the inside out: reversed, --help lists them as they are written below.
    for decorator in reversed(_SUITE_OPTIONS):
        decorated = decorator(decorated)
    return decorated


_SUITE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("suite", shell_complete=completion.suites),
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
        help="Change the suite: calibration.windows=8, methods.wanda.sparsity=[0.5,2:4]. "
        "Repeatable.",
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
