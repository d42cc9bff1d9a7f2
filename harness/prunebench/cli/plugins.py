"""`prunebench plugins`: the registered plugins, where they come from, and what is wrong with any.

`show`, `check` and `new` are in files of their own.
"""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

import click

from prunebench.cli.options import plugin_option
from prunebench.cli.terminal import say

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry, PluginProblem

SUBCOMMANDS = ("show", "check", "new")

Row = dict[str, str]


class _Subcommands(click.Group):
    """Imports a subcommand when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(SUBCOMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(f"prunebench.cli.plugins_{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(
    "plugins", cls=_Subcommands, invoke_without_command=True, short_help="List the plugins."
)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List everything that plugins registered, and the plugins that cannot be used.

    The environment variable PRUNEBENCH_PLUGINS restricts loading: a,b loads only these plugins
    (entry points or distributions), -a leaves one out, an empty value loads none.
    """
    # Click runs a group also before its subcommand.
    if context.invoked_subcommand is not None:
        return
    from prunebench.engine.select import built_in
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    rows = [_entry(entry) for entry in (*registry.entries(), *built_in())]
    # Problems are rows too: a plugin that is missing from the list should say why.
    rows += [_problem(problem) for problem in registry.problems]
    if as_json:
        say(json.dumps(rows, indent=1))
    else:
        _print(rows)


def _entry(entry: PluginEntry) -> Row:
    from prunebench.plugin.describe import text_of

    return {
        "name": entry.name,
        "kind": entry.kind,
        "distribution": entry.distribution,
        "version": entry.version,
        "status": "ok",
        "origin": entry.origin,
        "message": text_of(entry.value).partition("\n")[0],
    }


def _problem(problem: PluginProblem) -> Row:
    return {
        "name": problem.plugin,
        "kind": "plugin",
        "distribution": problem.distribution,
        "version": problem.version,
        "status": problem.status,
        "origin": "",
        "message": problem.message,
    }


def _print(rows: list[Row]) -> None:
    from prunebench.cli.tables import Column, show

    columns = [
        Column("name", keep=True),
        Column("kind"),
        Column("from"),
        Column("status", keep=True),
        Column("", words=True, keep=True),
    ]
    lines = [
        [
            row["name"],
            row["kind"],
            f"{row['distribution']} {row['version']}",
            row["status"],
            row["message"],
        ]
        for row in rows
    ]
    show(columns, lines, leave_out=["from"])
