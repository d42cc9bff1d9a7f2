"""`prunebench export`: the records of a run as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from prunebench.cli.terminal import say, say_path


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv", "parquet", "sqlite"]),
    default="csv",
    show_default=True,
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this file instead of printing."
)
def command(run: Path, form: Literal["json", "csv", "parquet", "sqlite"], out: Path | None) -> None:
    """Print the records of the run folder RUN, one row per cell, or write them to --out."""
    from prunebench_report import export

    text = export(run, form, out)
    # None: it was written to --out. JSON has no final newline, CSV has one.
    if text is not None:
        say(text, nl=not text.endswith("\n"))
    elif out is not None:
        say_path(out, err=True)
