"""`prunebench plugins check NAME`: the contract kit on small models, one line per promise."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli import completion
from prunebench.cli.options import assignments, plugin_option, plugin_words
from prunebench.cli.terminal import say, tell
from prunebench.errors import printable

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry

SIGNS = {"kept": "ok", "broken": "BROKEN", "not tried": "-", "hint": "hint"}


@click.command("check", short_help="Try whether a plugin keeps the contract.")
@plugin_option
@click.argument("name", shell_complete=completion.plugins)
@plugin_words("name")
@click.option(
    "--family",
    "families",
    multiple=True,
    shell_complete=completion.families,
    help="Try only these types of causal language models. Repeatable.",
)
def command(name: str, options: tuple[str, ...], families: tuple[str, ...]) -> None:
    """Try the promises of the method, allocation, recovery, metric or runtime NAME on small seeded
    models.

    Prints one line per promise; the exit code is 1 if one is broken. A hint breaks nothing: it
    says what is probably a mistake. Nothing is downloaded. `prunebench.testing.MethodContract` has
    the same promises as tests.
    """
    from prunebench.cli.plugins_show import named
    from prunebench.isolation.flags import Flags
    from prunebench.isolation.process_guard import guarded
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench.testing.check import CONTRACTS, check
    from prunebench.testing.contract import DEFAULT_FAMILIES

    _check_families(families)
    imported = Flags()
    with guarded("importing plugins", imported):
        registry = load_chosen_plugins()
    found = named(name, registry)
    # A name may belong to several kinds, of which only some have a contract.
    entry = next((one for one in found if one.kind in CONTRACTS), found[0])
    given = _checked_options(entry, assignments(options)) if entry.kind in CONTRACTS else {}
    tried = families or DEFAULT_FAMILIES
    say(f"{entry.kind} {name} of {entry.distribution} {entry.version} on {', '.join(tried)}")
    counts = Counter({"broken": len(imported.found)})
    for flag in imported.found:
        say(f"{SIGNS['broken']:<7} {flag}")
    # Verdicts are printed as they come: training takes a while.
    for verdict in check(entry, given, tried):
        counts[verdict.status] += 1
        if verdict.status == "not tried" and counts["broken"] and verdict.details.startswith("see"):
            continue  # the first broken promise keeps all the others from being tried
        details = f" ({verdict.details})" if verdict.details else ""
        tell(f"{SIGNS[verdict.status]:<7} {verdict.promise.says}{details}", indent=8)
    _say_end(counts, entry)
    if counts["broken"]:
        sys.exit(1)


def _say_end(counts: Counter[str], entry: PluginEntry) -> None:
    """A summary, and what to do next."""
    broken = counts["broken"]
    parts = [f"{counts['kept']} promises kept"]
    if broken:
        parts.append(f"{broken} {'promise is' if broken == 1 else 'promises are'} broken")
    if counts["not tried"]:
        parts.append(f"{counts['not tried']} not tried")
    if counts["hint"]:
        parts.append("1 hint")
    say("; ".join(parts), err=bool(broken))
    if broken:
        say("next: mend the first one, and check again", err=True)
        return
    suite, file = "SUITE", ""
    if entry.is_file:
        path = Path(entry.origin)
        beside = path.with_name("compare.yaml")
        suite = _shown(beside) if beside.is_file() else suite
        file = f" --plugin {_shown(path)}"
    say(f"next: prunebench run {suite}{file}")


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(printable(str(path)))


def _check_families(families: tuple[str, ...]) -> None:
    """Raise PrunebenchError, with the reason, unless small models of all of them can be pruned."""
    from prunebench.errors import PrunebenchError, did_you_mean, first_line
    from prunebench.model.supported import causal_types, check_family
    from prunebench.testing.models import tiny_model

    known = causal_types()
    for family in families:
        if family not in known:
            near = did_you_mean(family, known)
            listed = "`prunebench families` lists them all"
            raise PrunebenchError(
                f"no family is called '{family}'",
                hint=near if near.startswith("did you mean") else listed,
            )
        try:
            config = tiny_model(family).config.to_dict()
        except Exception as error:  # some need another package, or a file from the Hub
            raise PrunebenchError(
                f"no small model of the family {family} can be built ({first_line(error)})",
                hint="name another family",
            ) from error
        check_family({**config, "model_type": family}, f"--family {family}")


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
