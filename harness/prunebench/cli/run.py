"""`prunebench run`: the main job, from a suite file to the report."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from prunebench.cli.options import suite_options


@click.command("run")
@suite_options
@click.option("--no-report", is_flag=True, help="Leave report.html as it is.")
def command(
    suite: str,
    out: Path | None,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    no_report: bool,
) -> None:
    """Run SUITE (a file, or a shipped suite such as quickstart) and write its report.

    Cells that have a result are not run again, so the same command goes on after an interruption.
    """
    from prunebench.cell.store import RunStore
    from prunebench.cli.options import load_plan
    from prunebench.cli.progress import show
    from prunebench.engine.local import LocalEngine
    from prunebench.suite.plan import plan as whole_plan

    begun = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    loaded, plan, folder, registry = load_plan(suite, out, overrides, only, skip)
    store = RunStore.create(
        folder, whole_plan(loaded, registry), loaded.text
    )  # a selection does not shorten the report
    with store.lock():
        todo = [cell for cell in plan.cells if not store.finished(cell)]
        click.echo(f"{plan.suite}: {len(plan.cells)} cells, {len(plan.cells) - len(todo)} finished, in {folder}")
        for problem in registry.problems:
            if problem.status == "problem":
                click.echo(
                    f"plugin {problem.plugin} of {problem.distribution} {problem.version}: {problem.message}", err=True
                )
        measured = 0.0
        try:
            with show(len(todo)) as watcher:
                for record in LocalEngine(store, registry, watcher).run(todo):
                    measured += record.cost.measured_s if record.cost else 0.0
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on where it was", err=True)
            sys.exit(130)
        if not no_report:
            from prunebench_report import write_report

            click.echo(f"report: {write_report(folder)}")
        if measured:
            total = time.monotonic() - begun
            click.echo(
                f"{total:.0f} s in all, {total - measured:.1f} s of it ({1 - measured / total:.1%}) the harness itself"
            )
        failed = [cell for cell in plan.cells if not store.finished(cell)]
    if failed:
        click.echo(
            f"{len(failed)} of {len(plan.cells)} cells failed: {', '.join(cell.label for cell in failed)}", err=True
        )
        sys.exit(1)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
