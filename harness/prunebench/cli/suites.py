"""`prunebench suites`: the suites that come with prunebench."""

from __future__ import annotations

import json
import re

import click

from prunebench.cli.terminal import say


@click.command("suites")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """List the shipped suites and what each needs; `run`, `plan` and others accept these names."""
    from prunebench.cli.tables import Column, show
    from prunebench.suite.source import read, shipped

    rows = []
    for name, path in shipped().items():
        # Not checked: a title needs no plugins, and the list should be quick.
        source = read(path)
        title = str(source.data.get("title") or source.data.get("name"))
        rows.append({"name": name, "title": title, "needs": _needs(source.text), "file": str(path)})
    if as_json:
        say(json.dumps(rows, indent=1))
        return
    keys = ("name", "title", "needs")
    columns = [
        Column("suite", keep=True),
        *(Column(key, words=True, keep=True) for key in keys[1:]),
    ]
    show(columns, [[row[key] for key in keys] for row in rows])
    say("next: prunebench plan SUITE")


def _needs(text: str) -> str:
    """The comment of a suite that says which machine it needs; a title alone says nothing of it."""
    found = re.search(r"^# Needs: (.+)$", text, re.MULTILINE)
    return found[1] if found else ""
