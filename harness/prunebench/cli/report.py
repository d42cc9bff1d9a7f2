"""`prunebench report`: render a run's report again."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Write RUN/report.html from the records in the run folder RUN."""
    from prunebench_report import write_report

    click.echo(write_report(run))
