"""`prunebench run`: the main job, from a suite file to the report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from prunebench.cli.options import load_plan, suite_options


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
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        failed, cells = _run(suite, out, overrides, only, skip, report=not no_report)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on where it was", err=True)
        sys.exit(130)
    if failed:
        click.echo(f"{len(failed)} of {cells} failed: {', '.join(failed)}", err=True)
        sys.exit(1)


def _run(
    suite: str,
    out: Path | None,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    *,
    report: bool,
) -> tuple[list[str], str]:
    """Run what is to be run; gives the labels of the cells without a result, and the number of all in words."""
    from prunebench.engine.launcher import launcher

    begun = time.monotonic()
    with closing(launcher()) as starter:
        starter.start()  # its seconds of imports run beside the planning
        from prunebench.cell.store import RunStore
        from prunebench.cli.live import LiveReport
        from prunebench.cli.progress import show
        from prunebench.engine.local import LocalEngine
        from prunebench.suite.plan import plan as whole_plan

        loaded, plan, folder, registry = load_plan(suite, out, overrides, only, skip)
        whole = whole_plan(loaded, registry)
        with RunStore.check(folder, whole.suite).lock(starter.mark) as former:
            # a selection does not shorten the report
            store = RunStore.create(folder, whole, loaded.text)
            todo = [cell for cell in plan.cells if not store.finished(cell)]
            done = len(plan.cells) - len(todo)
            cells = "1 cell" if len(plan.cells) == 1 else f"{len(plan.cells)} cells"
            click.echo(f"{plan.suite}: {cells}, {done} finished, in {folder}")
            if former is not None:
                click.echo(f"going on where an earlier run was ended ({former})", err=True)
            for damaged in store.records(todo)[1]:
                click.echo(f"{damaged.path.name}: {damaged.reason}; the cell is run again", err=True)
            for problem in registry.problems:
                if problem.status == "problem":
                    name = f"{problem.plugin} of {problem.distribution} {problem.version}"
                    click.echo(f"plugin {name}: {problem.message}", err=True)
            if todo and report:
                import prunebench_report

                prunebench_report.import_libraries()
            sections = [section.value for section in registry.sections.values()]
            measured = 0.0
            with show(len(todo)) as watcher, LiveReport(partial(_report, folder, sections)) as live:
                engine = LocalEngine(store, registry, watcher, starter)
                for number, record in enumerate(engine.run(todo), 1):
                    measured += record.cost.measured_s if record.cost else 0.0
                    if report and number < len(todo):
                        live.cell_finished()
            if report:
                from prunebench.cli import ending

                ending.show(folder)
                click.echo(f"report: {_report(folder, sections, running=False)}")
            if measured:
                total = time.monotonic() - begun
                own = total - measured
                click.echo(f"{total:.0f} s in all, {own:.1f} s of it ({own / total:.1%}) the harness itself")
            return [cell.label for cell in plan.cells if not store.finished(cell)], cells


def _report(folder: Path, sections: Sequence[Any], running: bool) -> Path:
    from prunebench_report import write_report

    return write_report(folder, sections=sections, running=running)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
