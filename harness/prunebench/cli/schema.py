"""`prunebench schema`: the JSON Schema of a suite file, so that editors complete and check it."""

from __future__ import annotations

import click

from prunebench.cli.terminal import say


@click.command("schema", short_help="Print the JSON Schema of a suite file.")
def command() -> None:
    """Print the JSON Schema of a suite file, with the options of every installed plugin.

    Save it and name it in the first line of a suite; then editors complete and check the suite:
    `# yaml-language-server: $schema=suite.schema.json`
    """
    import json

    from prunebench.plugin.host import load_chosen_plugins
    from prunebench.suite.json_schema import json_schema

    say(json.dumps(json_schema(load_chosen_plugins()), indent=2))
