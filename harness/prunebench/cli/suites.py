"""`prunebench suites`: the suites that come with prunebench."""

from __future__ import annotations

import json

import click

from prunebench.cli.terminal import say


@click.command("suites")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """List the shipped suites; `run`, `plan` and other commands accept these names.

    The first lines of a suite's file say what it needs.
    """
    from prunebench.suite.source import read, shipped

    rows = []
    for name, path in shipped().items():
        # Not checked: a title needs no plugins, and the list should be quick.
        data = read(path).data
        rows.append(
            {"name": name, "title": str(data.get("title") or data.get("name")), "file": str(path)}
        )
    if as_json:
        say(json.dumps(rows, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{row['name']:{width}}  {row['title']}")
