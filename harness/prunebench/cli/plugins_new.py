"""`prunebench plugins new NAME`: the package of a new plugin, which works as it is written."""

from __future__ import annotations

from pathlib import Path

import click

from prunebench.cli.terminal import result_is_a_file, say, say_path
from prunebench.errors import printable
from prunebench.plugin.scaffold import SCAFFOLDS, STRUCTURES, write_package


@click.command("new", short_help="Write the package of a new plugin.")
@click.argument("name")
@click.option(
    "--kind",
    default="method",
    show_default=True,
    type=click.Choice([name for name in SCAFFOLDS if not name.startswith("method-")]),
    help="What it registers.",
)
@click.option(
    "--structure",
    type=click.Choice(list(STRUCTURES)),
    help="What a method removes: single weights, decoder layers, attentions and MLPs, or the"
    " channels of MLPs.  [default: unstructured]",
)
@click.option(
    "--in",
    "parent",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the package.",
)
def command(name: str, kind: str, structure: str | None, parent: Path) -> None:
    """Write a package for the plugin NAME: about 30 lines of code, tests, a suite that compares it.

    The code is a single file, which also works without the package: prunebench run SUITE --plugin
    FILE.
    """
    from prunebench.engine.select import built_in
    from prunebench.errors import PrunebenchError
    from prunebench.plugin.host import load_chosen_plugins

    result_is_a_file()
    if structure is not None and kind != "method":
        raise PrunebenchError(
            f"--structure is for methods, not for a {kind}", hint="leave it out, or --kind"
        )
    # The package would seem to work until a suite names the plugin and gets the other one.
    for entry in (*load_chosen_plugins().entries(), *built_in()):
        if entry.name == name and entry.kind == SCAFFOLDS[kind].kind:
            raise PrunebenchError(
                f"the {kind} '{name}' is there already, from {entry.distribution} {entry.version}",
                hint="take another name; a suite names plugins by it",
            )
    template = STRUCTURES[structure] if structure else kind
    folder = write_package(name, template, parent)
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        say_path(path)
    shown = printable(str(folder))
    say(f"next: cd {shown}")
    if SCAFFOLDS[template].contract:
        say(f"      prunebench plugins check {name} --plugin {_module(name)}")
    say(f"      prunebench run compare.yaml --plugin {_module(name)}")


def _module(name: str) -> str:
    return f"prunebench_{name.replace('-', '_')}.py"
