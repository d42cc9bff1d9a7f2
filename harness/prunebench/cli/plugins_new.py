"""`prunebench plugins new NAME`: the package of a new plugin, which works as it is written."""

from __future__ import annotations

from pathlib import Path

import click

from prunebench.cli.terminal import result_is_a_file, say, say_path
from prunebench.errors import printable
from prunebench.plugin.scaffold import SCAFFOLDS, write_package


@click.command("new", short_help="Write the package of a new plugin.")
@click.argument("name")
@click.option(
    "--kind",
    default="method",
    show_default=True,
    type=click.Choice(list(SCAFFOLDS)),
    help="What it registers.",
)
@click.option(
    "--in",
    "parent",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the package.",
)
def command(name: str, kind: str, parent: Path) -> None:
    """Write a package for the plugin NAME: about 25 lines of code, tests, a suite that compares it.

    The code is a single file, which also works without the package: prunebench run SUITE --plugin
    FILE.
    """
    from prunebench.engine.select import built_in
    from prunebench.errors import PrunebenchError
    from prunebench.plugin.host import load_chosen_plugins

    result_is_a_file()
    # The package would seem to work until a suite names the plugin and gets the other one.
    for entry in (*load_chosen_plugins().entries(), *built_in()):
        if entry.name == name and entry.kind == SCAFFOLDS[kind].kind:
            raise PrunebenchError(
                f"the {kind} '{name}' is there already, from {entry.distribution} {entry.version}",
                hint="take another name; a suite names plugins by it",
            )
    folder = write_package(name, kind, parent)
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        say_path(path)
    shown = printable(str(folder))
    say(f"next: pip install -e {shown}, then follow {shown}/README.md")
