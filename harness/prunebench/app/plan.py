"""Plan a suite: its cells, those that were selected, and the folder they run in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.plugin.registry import Registry
    from prunebench.store.plan_file import Plan
    from prunebench.suite.load import Suite


@dataclass(frozen=True)
class SuiteRequest:
    """Which suite, changed how, and which of its cells."""

    suite: str | Path | Mapping[str, Any]
    """A file, the name of a shipped suite, or a suite's content."""
    out: Path | None = None
    """The run folder; `runs/NAME`, with the suite's name, if None."""
    overrides: Sequence[str] = ()
    """Changes as `--set` takes them: 'calibration.windows=8'."""
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    """Patterns that select cells, see `prunebench.suite.plan.select`."""


@dataclass(frozen=True)
class PlannedSuite:
    """A suite that was read once, with everything that its plan depends on."""

    suite: Suite
    registry: Registry
    """The plugins that the suite was planned with."""
    plan: Plan
    """All cells of the suite: a selection does not shorten the run folder or the report."""
    cells: tuple[Cell, ...]
    """The selected cells, in the order of the plan."""
    folder: Path


def plan_suite(request: SuiteRequest) -> PlannedSuite:
    """Read and check a suite, and make its cells. Nothing is written, and torch is not imported.

    Raises PrunebenchError with every problem of the suite, and for patterns that match no cell.
    """
    from prunebench.plugin.host import load_chosen_plugins
    from prunebench.suite.load import check_suite
    from prunebench.suite.overrides import override
    from prunebench.suite.plan import plan, select
    from prunebench.suite.source import read, source_of
    from prunebench.user_path import user_path

    # Loading runs the code of every plugin; everything later uses this registry.
    registry = load_chosen_plugins()
    given = request.suite
    source = source_of(given, "suite") if isinstance(given, Mapping) else read(given)
    # Overrides come before the check: they may replace what is wrong in the file.
    suite = check_suite(override(source, request.overrides), registry)
    whole = plan(suite, registry)
    folder = request.out or Path("runs") / suite.name
    return PlannedSuite(
        suite=suite,
        registry=registry,
        plan=whole,
        cells=tuple(select(whole.cells, request.only, request.skip)),
        folder=user_path(folder, what="the run folder", hint="choose another with --out"),
    )
