"""`prunebench families`: what works on a model, or on all types of models."""

from __future__ import annotations

import json

import click

from prunebench.cli import completion
from prunebench.cli.tables import Column, show
from prunebench.cli.terminal import say, tell


@click.command("families", short_help="Show what works on a model, and why the rest does not.")
@click.argument("model", required=False, shell_complete=completion.families)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the modelling code that comes with MODEL."
)
def command(model: str | None, *, as_json: bool, trust_remote_code: bool) -> None:
    """Show what works on MODEL, from its config alone: no weights are downloaded or loaded.

    MODEL is a folder with a config.json, a Hub id or a model_type of transformers. Without MODEL,
    the table of all types: a dot is what does not work, and `prunebench families TYPE` says why.
    """
    from prunebench.app.families import LEVELS, all_levels, model_levels

    if model is not None:
        found = model_levels(model, trust_remote_code=trust_remote_code)
        if as_json:
            say(found.model_dump_json(indent=1))
            return
        size = "" if found.parameters is None else f", {found.parameters:,} parameters"
        tell(f"{found.model}: {found.model_type}{size}")
        for level, answer in found.levels.items():
            mark = "yes" if answer.works else "no"
            tell(f"  {mark:<3} {level:<8} {answer.text}", indent=15)
        return
    types = all_levels()
    if as_json:
        say(json.dumps(types, indent=1))
        return
    rows = [
        [name, *("." if answers.get(level, ".") else "yes" for level in LEVELS)]
        for name, answers in types.items()
    ]
    show([Column("type", keep=True), *(Column(level) for level in LEVELS)], rows)
