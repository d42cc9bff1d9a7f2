"""`prunebench run`: the main job, from a suite file to the report."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.options import load_plan, suite_options

if TYPE_CHECKING:
    from prunebench.engine.local import LocalEngine


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
    from prunebench.engine.launcher import launcher

    begun = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    with closing(launcher()) as starter:
        starter.start()  # its seconds of imports run beside the planning
        from prunebench.cell.store import RunStore
        from prunebench.cli.progress import show
        from prunebench.engine.local import LocalEngine
        from prunebench.suite.plan import plan as whole_plan

        loaded, plan, folder, registry = load_plan(suite, out, overrides, only, skip)
        # a selection does not shorten the report
        store = RunStore.create(folder, whole_plan(loaded, registry), loaded.text)
        with store.lock():
            todo = [cell for cell in plan.cells if not store.finished(cell)]
            done = len(plan.cells) - len(todo)
            cells = "1 cell" if len(plan.cells) == 1 else f"{len(plan.cells)} cells"
            click.echo(f"{plan.suite}: {cells}, {done} finished, in {folder}")
            for problem in registry.problems:
                if problem.status == "problem":
                    name = f"{problem.plugin} of {problem.distribution} {problem.version}"
                    click.echo(f"plugin {name}: {problem.message}", err=True)
            if todo and not no_report:
                import prunebench_report

                prunebench_report.import_libraries()
            with show(len(todo)) as watcher:
                measured = _run(LocalEngine(store, registry, watcher, starter), todo)
            if not no_report:
                from prunebench_report import write_report

                click.echo(f"report: {write_report(folder)}")
            if measured:
                total = time.monotonic() - begun
                own = total - measured
                click.echo(f"{total:.0f} s in all, {own:.1f} s of it ({own / total:.1%}) the harness itself")
            failed = [cell.label for cell in plan.cells if not store.finished(cell)]
    if failed:
        click.echo(f"{len(failed)} of {cells} failed: {', '.join(failed)}", err=True)
        sys.exit(1)


def _run(engine: LocalEngine, cells: list[Any]) -> float:
    """Run the cells; gives the seconds spent in their phases (load, prune, measure)."""
    try:
        return sum(record.cost.measured_s for record in engine.run(cells) if record.cost)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on where it was", err=True)
        sys.exit(130)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
