"""`prunebench plugins`: what is there, where it comes from, and what is wrong with it."""

from __future__ import annotations

import json

import click


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(*, as_json: bool) -> None:
    """List methods, recoveries, models, corpora and task data with the plugin that provides each, and the plugins that cannot be used.

    PRUNEBENCH_PLUGINS=a,b loads only these plugins (entry points or distributions), -a leaves one out, an empty
    value loads none.
    """
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
            "message": _summary(entry.value),
        }
        for entry in registry.all()
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
        (row["name"], row["kind"], f"{row['distribution']} {row['version']}", row["status"], row["message"])
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        click.echo(
            "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]).rstrip()
        )


def _summary(value: object) -> str:
    """First line of what a plugin author wrote about the thing."""
    text = getattr(value, "summary", None) or getattr(value, "__doc__", None) or ""
    lines = str(text).strip().splitlines()
    return lines[0] if lines else ""
