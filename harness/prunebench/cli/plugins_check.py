"""`prunebench plugins check NAME`: the contract kit on small seeded models, one line a promise."""

from __future__ import annotations

import sys

import click

from prunebench.cli.options import assignments, plugin_option

SIGNS = {"kept": "ok", "broken": "BROKEN", "not tried": "-"}


@click.command("check", short_help="Try whether a plugin keeps the contract.")
@plugin_option
@click.argument("name")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--family", "families", multiple=True, help="Try these families only. Repeatable.")
def command(name: str, options: tuple[str, ...], families: tuple[str, ...]) -> None:
    """Try the promises of the method, allocation, recovery or metric NAME on small seeded models of several families.

    One line a promise; exit code 1 where one is broken. Nothing is downloaded. The same promises as tests:
    `prunebench.testing.MethodContract`.
    """
    from prunebench.cli.plugins_show import named
    from prunebench.errors import PrunebenchError, did_you_mean
    from prunebench.plugin.host import load_plugins
    from prunebench.testing.check import CONTRACTS, check
    from prunebench.testing.contract import DEFAULT_FAMILIES
    from prunebench.testing.models import FAMILIES

    for family in families:
        if family not in FAMILIES:
            raise PrunebenchError(
                f"no family is called '{family}'", hint=did_you_mean(family, FAMILIES)
            )
    found = named(name, load_plugins())
    entry = next((one for one in found if one.kind in CONTRACTS), found[0])
    asked = _parsed(entry.value, assignments(options)) if entry.kind in CONTRACTS else {}
    wanted = families or DEFAULT_FAMILIES
    click.echo(
        f"{entry.kind} {name} of {entry.distribution} {entry.version} on {', '.join(wanted)}"
    )
    broken = 0
    for verdict in check(entry, asked, wanted):
        broken += verdict.status == "broken"
        details = f" ({verdict.details})" if verdict.details else ""
        click.echo(f"{SIGNS[verdict.status]:<7} {verdict.promise.says}{details}")
    if broken:
        click.echo(f"{broken} {'promise is' if broken == 1 else 'promises are'} broken", err=True)
        sys.exit(1)


def _parsed(kind: type, options: dict[str, object]) -> dict[str, object]:
    """The options, checked as a suite's are. Raises PrunebenchError."""
    import json

    from pydantic import ValidationError

    from prunebench.errors import PrunebenchError

    model = kind.Options  # type: ignore[attr-defined]
    try:
        model.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "options"
        raise PrunebenchError(
            f"{where}: {first['msg']}", hint="`prunebench plugins show NAME` lists them"
        ) from error
    return options
