"""`prunebench plugins`: what is there, where it comes from, and what is wrong with it; `show`, `check` and `new`."""

from __future__ import annotations

import importlib
import json

import click

from prunebench.cli.options import plugin_option

SUBCOMMANDS = ("show", "check", "new")


class _Subcommands(click.Group):
    """Imports a subcommand when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(
            f"prunebench.cli.plugins_{cmd_name}"
        ).command
        return command


@click.group(
    "plugins", cls=_Subcommands, invoke_without_command=True, short_help="List the plugins."
)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List methods, allocations, recoveries, models, corpora, task data, metrics and engines with the plugin that provides each, and the plugins that cannot be used.

    PRUNEBENCH_PLUGINS=a,b loads only these plugins (entry points or distributions), -a leaves one out, an empty
    value loads none.
    """
    if context.invoked_subcommand is not None:
        return
    from prunebench.engine.select import built_in
    from prunebench.plugin.describe import text_of
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    rows = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "distribution": entry.distribution,
            "version": entry.version,
            "status": "ok",
            "origin": entry.origin,
            "message": text_of(entry.value).partition("\n")[0],
        }
        for entry in (*registry.entries(), *built_in())
    ]
    rows += [
        {
            "name": problem.plugin,
            "kind": "plugin",
            "distribution": problem.distribution,
            "version": problem.version,
            "status": problem.status,
            "origin": "",
            "message": problem.message,
        }
        for problem in registry.problems
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    head = ("name", "kind", "from", "status", "")
    lines = [head] + [
        (
            row["name"],
            row["kind"],
            f"{row['distribution']} {row['version']}",
            row["status"],
            row["message"],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        click.echo(
            "  ".join(
                [*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]
            ).rstrip()
        )
