"""Run a suite: every cell without a result in a process of its own, then the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunebench.app.careful_display import careful
from prunebench.app.live_report import LiveReport
from prunebench.app.plan import PlannedSuite, SuiteRequest, plan_suite

if TYPE_CHECKING:
    from prunebench.engine.job import Launcher
    from prunebench.engine.session import Session, Watcher
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.api.engine import Engine
    from prunebench.plugin.registry import PluginProblem
    from prunebench.store.lock import Owner
    from prunebench.store.run_folder import DamagedRecord, RunStore


@dataclass(frozen=True)
class RunStart:
    """What is known before the first cell runs."""

    suite: str
    folder: Path
    cells: int
    """Cells that were selected."""
    to_run: tuple[Cell, ...]
    """Those of them that have no result yet."""
    former: Owner | None
    """The run that was killed in this folder, if one was."""
    damaged: tuple[DamagedRecord, ...]
    """Records that cannot be read; their cells are run again."""
    plugin_problems: tuple[PluginProblem, ...]
    warnings: tuple[str, ...] = ()
    """What is probably a mistake in the suite."""


class RunObserver(Protocol):
    """Shows how a run goes."""

    def begin(self, start: RunStart) -> AbstractContextManager[Watcher]:
        """Called once, before the first cell; the context stays open while cells run."""


@dataclass(frozen=True)
class FinishedRun:
    """How a run ended."""

    folder: Path
    report: Path | None
    """The report that was written, if one was wanted."""
    cells: int
    """Cells that were selected."""
    failed: tuple[str, ...]
    """Labels of those that still have no result."""
    not_measurable: tuple[str, ...]
    """Labels of those whose speed could not be measured here."""
    measured_s: float
    """Sum of the seconds that this run's cells measured."""
    most_at_once: int
    """The largest number of cells that ran at the same time."""
    warnings: tuple[str, ...] = ()
    """What is probably a mistake in the suite."""


def run_suite(
    request: SuiteRequest,
    observer: RunObserver,
    *,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    report: bool = True,
) -> FinishedRun:
    """Run the selected cells that have no result, and write the report if ``report`` is true.

    A failed cell is a record too; it stops nothing, and the next run tries it again. Raises
    PrunebenchError if the suite, the engine or the run folder is wrong, KeyboardInterrupt if it was
    interrupted: then every process that it started has ended, and finished cells are kept.
    """
    from prunebench.engine.launcher import launcher

    with closing(launcher()) as starter:
        if engine == "local":
            # Its process imports torch and transformers for seconds, while this one plans.
            starter.start()
        from prunebench.engine.select import choose
        from prunebench.model.files import check_file_target
        from prunebench.store.run_folder import RunStore

        planned = plan_suite(request)
        # Everything that the user can have got wrong is checked before the folder is made.
        chosen = choose(engine, engine_options or {}, planned.registry)
        with RunStore.check(planned.folder, planned.plan.suite).lock(starter.mark) as former:
            # After the lock: another run may be using the folder.
            store = RunStore.create(planned.folder, planned.plan, planned.suite.text)
            if report:
                check_file_target(store.report_path)
            run = _Run(planned, store, chosen, report=report)
            return run.carry_out(observer, starter, former)


@dataclass
class _Run:
    """A run whose folder is locked."""

    planned: PlannedSuite
    store: RunStore
    engine: Engine
    report: bool
    measured_s: float = 0.0

    def carry_out(
        self, observer: RunObserver, starter: Launcher, former: Owner | None
    ) -> FinishedRun:
        from prunebench.engine.session import Session

        cells = self.planned.cells
        # A failed cell has a record, but is not finished.
        todo = [cell for cell in cells if not self.store.finished(cell)]
        start = self._start(todo, former)
        with careful(lambda: observer.begin(start)) as watcher:
            session = Session(self.store, self.planned.registry, watcher, starter)
            self._measure(session, todo)
        return FinishedRun(
            folder=self.store.folder,
            report=self._write_report(running=False) if self.report else None,
            cells=len(cells),
            failed=tuple(cell.label for cell in cells if not self.store.finished(cell)),
            not_measurable=tuple(cell.label for cell in cells if self._unmeasured(cell)),
            measured_s=self.measured_s,
            most_at_once=session.most_at_once,
            warnings=start.warnings,
        )

    def _unmeasured(self, cell: Cell) -> bool:
        """Whether a cell that finished has a shape that was too much disturbed to be timed."""
        records, _ = self.store.records([cell])
        return any(
            one.not_measurable for record in records if record.speed for one in record.speed.latency
        )

    def _start(self, todo: list[Cell], former: Owner | None) -> RunStart:
        problems = self.planned.registry.problems
        return RunStart(
            suite=self.planned.plan.suite,
            folder=self.store.folder,
            cells=len(self.planned.cells),
            to_run=tuple(todo),
            former=former,
            damaged=tuple(self.store.records(todo)[1]),
            plugin_problems=tuple(one for one in problems if one.status == "problem"),
            warnings=self.planned.suite.warnings,
        )

    def _measure(self, session: Session, todo: list[Cell]) -> None:
        if todo and self.report:
            from prunebench_report import import_libraries

            import_libraries()  # while the first cell's process is still importing torch
        with LiveReport(self._write_report) as live:
            for number, record in enumerate(session.run(self.engine, todo), 1):
                self.measured_s += record.cost.measured_s if record.cost else 0.0
                # The last cell is followed by the final report.
                if self.report and number < len(todo):
                    _write_between_cells(live, session)

    def _write_report(self, running: bool) -> Path:
        from prunebench_report import write_report

        sections = list(self.planned.registry.registered("section").values())
        return write_report(self.store.folder, sections=sections, running=running)


def _write_between_cells(live: LiveReport, session: Session) -> None:
    """Write the report if no cell is timing: rendering would take a core from it."""
    from prunebench.isolation.timing_lock import TimingLock, lock_folder

    # Cells that run one at a time need no lock: none is running now.
    with TimingLock(lock_folder() if session.most_at_once > 1 else None) as lock:
        if lock.try_share():
            live.cell_finished()
