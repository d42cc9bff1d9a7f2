"""`prunebench run`: the main job, from a suite file to the report."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli import completion
from prunebench.cli.options import strict_option, suite_options
from prunebench.cli.terminal import result_is_a_file, say, tell
from prunebench.cli.watch import SERVICES, watch
from prunebench.errors import printable

if TYPE_CHECKING:
    from prunebench.app.plan import SuiteRequest
    from prunebench.app.run import FinishedRun, RunStart
    from prunebench.engine.session import Watcher

NOT_MEASURABLE = 3
"""Exit code: every cell has a result, but not every speed."""


@click.command("run")
@suite_options
@click.option("--no-report", is_flag=True, help="Leave report.html as it is.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    shell_complete=completion.engines,
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
    help="The cluster of --engine ray: HOST:PORT or auto; without it, a cluster is started here.",
)
@click.option(
    "--watch",
    "services",
    multiple=True,
    type=click.Choice(SERVICES),
    callback=watch,
    expose_value=False,
    help="Send every finished cell there; the service's own variables say where. Repeatable.",
)
@strict_option
def command(
    request: SuiteRequest,
    no_report: bool,
    engine: str,
    options: tuple[str, ...],
    ray_address: str | None,
    strict: bool,
) -> None:
    """Run SUITE (a file, or a shipped suite such as quickstart) and write its report.

    Cells that have a result are not run again, so the same command continues an interrupted run.

    The exit code is 0 if all cells have a result, 1 if some failed, 2 for a wrong command or suite,
    3 if something else used the machine, so that the speed of some cells was not measurable, and 4
    with --strict if there are warnings. If several apply, it is the first of 1, 3 and 4.
    """
    from prunebench.app import run_suite

    result_is_a_file()
    _end_as_ctrl_c_does()
    begun = time.monotonic()  # imports and planning are part of the harness's own time
    given = _engine_options(engine, options, ray_address)
    try:
        done = run_suite(
            request, _Terminal(), engine=engine, engine_options=given, report=not no_report
        )
    except KeyboardInterrupt:
        say("stopped; the same command continues the run", err=True)
        sys.exit(130)  # 128 + SIGINT, as shells report it
    reason = _show_end(done, begun, strict=strict)
    if done.failed:
        tell(
            f"{len(done.failed)} of {_cells(done.cells)} failed: {', '.join(done.failed)}", err=True
        )
        sys.exit(1)
    if done.not_measurable:
        names = ", ".join(done.not_measurable)
        tell(
            f"something else used this machine: the speed of {len(done.not_measurable)} of "
            f"{_cells(done.cells)} was not measurable ({names})",
            err=True,
        )
        sys.exit(NOT_MEASURABLE)
    if strict:
        from prunebench.cli.run_end import end_unless_clean

        end_unless_clean(reason)


class _Terminal:
    """Prints what is known at the start, then the progress of each cell."""

    def begin(self, start: RunStart) -> AbstractContextManager[Watcher]:
        from prunebench.app.progress import show

        finished = start.cells - len(start.to_run)
        say(
            f"{start.suite}: {_cells(start.cells)}, {finished} finished, in {printable(str(start.folder))}"
        )
        if start.former is not None:
            say(f"continuing a run that was killed ({start.former})", err=True)
        for damaged in start.damaged:
            say(f"{damaged.path.name}: {damaged.reason}; the cell is run again", err=True)
        for problem in start.plugin_problems:
            name = f"{problem.plugin} of {problem.distribution} {problem.version}"
            say(f"plugin {name}: {problem.message}", err=True)
        for warning in start.warnings:
            tell(f"warning: {warning}", err=True)
        return show(start.to_run)


def _show_end(done: FinishedRun, begun: float, *, strict: bool) -> str | None:
    """Print how the run ended; returns why it does not pass --strict, or None."""
    reason = None
    if done.report is not None or strict:
        from prunebench.cli.run_end import show_summary, show_warnings, strict_reason
        from prunebench_report import load, summary

        found = summary(load(done.folder))
        if done.report is not None:
            show_summary(found)
        # Warnings of the suite were printed when the run began.
        show_warnings(found.warnings, found.misses)
        reason = strict_reason([*done.warnings, *found.warnings], found.misses)
    if done.report is not None:
        say(f"report: {printable(str(done.report))}")
    if done.measured_s:
        tell(_spent(time.monotonic() - begun, done.measured_s, done.most_at_once))
    return reason


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
    """Where the time of a run went: seconds in all, and seconds that cells measured."""
    # Cells that ran at the same time add up to more than the run: no share can be given.
    if at_once > 1:
        return f"{total:.0f} s in all, for {measured:.0f} s of cells, up to {at_once} side by side"
    own = total - measured
    return f"{total:.0f} s in all, {own:.1f} s of it ({own / total:.1%}) the harness itself"


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"


def _end_as_ctrl_c_does() -> None:
    """Let SIGTERM and a terminal that closes end cells and release the lock, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    # Under nohup the signal is ignored, and the run goes on.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
