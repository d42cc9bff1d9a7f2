"""`prunebench plugins check NAME`: the contract kit on small models, one line per promise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.options import assignments, plugin_option
from prunebench.cli.terminal import say

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry

SIGNS = {"kept": "ok", "broken": "BROKEN", "not tried": "-"}


@click.command("check", short_help="Try whether a plugin keeps the contract.")
@plugin_option
@click.argument("name")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--family", "families", multiple=True, help="Try only these families. Repeatable.")
def command(name: str, options: tuple[str, ...], families: tuple[str, ...]) -> None:
    """Try the promises of the method, allocation, recovery or metric NAME on small seeded models.

    Prints one line per promise; the exit code is 1 if one is broken. Nothing is downloaded.
    `prunebench.testing.MethodContract` has the same promises as tests.
    """
    from prunebench.cli.plugins_show import named
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench.testing.check import CONTRACTS, check
    from prunebench.testing.contract import DEFAULT_FAMILIES

    _check_families(families)
    found = named(name, load_chosen_plugins())
    # A name may belong to several kinds, of which only some have a contract.
    entry = next((one for one in found if one.kind in CONTRACTS), found[0])
    given = _checked_options(entry, assignments(options)) if entry.kind in CONTRACTS else {}
    tried = families or DEFAULT_FAMILIES
    say(f"{entry.kind} {name} of {entry.distribution} {entry.version} on {', '.join(tried)}")
    # Verdicts are printed as they come: training takes a while.
    broken = 0
    for verdict in check(entry, given, tried):
        broken += verdict.status == "broken"
        details = f" ({verdict.details})" if verdict.details else ""
        say(f"{SIGNS[verdict.status]:<7} {verdict.promise.says}{details}")
    if broken:
        say(f"{broken} {'promise is' if broken == 1 else 'promises are'} broken", err=True)
        sys.exit(1)


def _check_families(families: tuple[str, ...]) -> None:
    from prunebench.errors import PrunebenchError, did_you_mean
    from prunebench.testing.models import FAMILIES

    for family in families:
        if family not in FAMILIES:
            raise PrunebenchError(
                f"no family is called '{family}'", hint=did_you_mean(family, FAMILIES)
            )


def _checked_options(entry: PluginEntry, options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked as strictly as a suite's. Raises PrunebenchError."""
    from pydantic import ValidationError

    from prunebench.errors import PrunebenchError
    from prunebench.plugin.option_values import first_fault, read_options

    try:
        read_options(entry.value.Options, options)
    except ValidationError as error:
        key, message = first_fault(error)
        raise PrunebenchError(
            f"{key}: {message}", hint=f"`prunebench plugins show {entry.name}` lists them"
        ) from error
    return options
