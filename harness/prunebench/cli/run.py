"""`prunebench run`: the main job, from a suite file to the report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from prunebench.cli.options import load_plan, suite_options


@click.command("run")
@suite_options
@click.option("--no-report", is_flag=True, help="Leave report.html as it is.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    help="Where cells run: local, ray, or a plugin's engine.",
)
@click.option(
    "--engine-option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the engine, see `prunebench plugins show ENGINE`. Repeatable.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="The cluster of --engine ray: HOST:PORT or auto; one is started here if absent.",
)
def command(
    suite: str,
    out: Path | None,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    no_report: bool,
    engine: str,
    options: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Run SUITE (a file, or a shipped suite such as quickstart) and write its report.

    Cells that have a result are not run again, so the same command goes on after an interruption.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    given = _engine_options(engine, options, ray_address)
    try:
        failed, cells = _run(suite, out, overrides, only, skip, engine, given, report=not no_report)
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
    engine: str,
    options: Mapping[str, str],
    *,
    report: bool,
) -> tuple[list[str], str]:
    """Run what is to be run; gives the labels of the cells without a result, and the number of all in words."""
    from prunebench.engine.launcher import launcher

    begun = time.monotonic()
    with closing(launcher()) as starter:
        if engine == "local":
            starter.start()  # its seconds of imports run beside the planning
        from prunebench.app.live_report import LiveReport
        from prunebench.app.progress import show
        from prunebench.engine.select import choose
        from prunebench.engine.session import Session
        from prunebench.isolation.timing_lock import TimingLock, lock_folder
        from prunebench.store.run_folder import RunStore
        from prunebench.suite.plan import plan as whole_plan

        loaded, plan, folder, registry = load_plan(suite, out, overrides, only, skip)
        whole = whole_plan(loaded, registry)
        chosen = choose(engine, options, registry)
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
                click.echo(
                    f"{damaged.path.name}: {damaged.reason}; the cell is run again", err=True
                )
            for problem in registry.problems:
                if problem.status == "problem":
                    name = f"{problem.plugin} of {problem.distribution} {problem.version}"
                    click.echo(f"plugin {name}: {problem.message}", err=True)
            if todo and report:
                import prunebench_report

                prunebench_report.import_libraries()
            sections = list(registry.registered("section").values())
            measured = 0.0
            with show(len(todo)) as watcher, LiveReport(partial(_report, folder, sections)) as live:
                session = Session(store, registry, watcher, starter)
                for number, record in enumerate(session.run(chosen, todo), 1):
                    measured += record.cost.measured_s if record.cost else 0.0
                    if report and number < len(todo):
                        with TimingLock(
                            lock_folder() if session.most_at_once > 1 else None
                        ) as lock:
                            if lock.try_share():
                                live.cell_finished()
            if report:
                from prunebench.cli import ending

                ending.show(folder)
                click.echo(f"report: {_report(folder, sections, running=False)}")
            if measured:
                click.echo(_spent(time.monotonic() - begun, measured, session.most_at_once))
            return [cell.label for cell in plan.cells if not store.finished(cell)], cells


def _engine_options(engine: str, options: Sequence[str], ray_address: str | None) -> dict[str, str]:
    """Options of the engine by their names."""
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address goes with --engine ray")
    given = {} if ray_address is None else {"address": ray_address}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--engine-option {option}: write KEY=VALUE")
        given[key] = value
    return given


def _spent(total: float, measured: float, at_once: int) -> str:
    """Where the time of a run went; ``measured`` seconds of cells, ``at_once`` of them at most side by side."""
    if at_once > 1:
        return f"{total:.0f} s in all, for {measured:.0f} s of cells, up to {at_once} side by side"
    own = total - measured
    return f"{total:.0f} s in all, {own:.1f} s of it ({own / total:.1%}) the harness itself"


def _report(folder: Path, sections: Sequence[Any], running: bool) -> Path:
    from prunebench_report import write_report

    return write_report(folder, sections=sections, running=running)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
