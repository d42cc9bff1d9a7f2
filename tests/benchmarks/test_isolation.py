"""What isolation and planning cost: seconds until a cell loads its model, and for 1,000 cells."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prunebench.cell.events import Event
from prunebench.engine.launcher import launcher
from prunebench.engine.local import LocalEngine
from prunebench.engine.session import Session
from prunebench.experiment.cell import Cell
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig

pytestmark = pytest.mark.bench

START_S = 1.0
PLAN_S = 1.0


class Clock:
    """Seconds from each cell's start until it loads its model."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.until_load: list[float] = []

    def started(self, cell: Cell) -> None:
        self.begun = time.monotonic()

    def moved(self, cell: Cell, event: Event) -> None:
        if event.phase == "load":
            self.until_load.append(time.monotonic() - self.begun)

    def finished(self, record: Record) -> None:
        assert record.status == "ok", record.error


def test_a_cell_loads_its_model_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    rig = Rig(tmp_path)
    for name, value in rig.environment.items():
        monkeypatch.setenv(name, value)
    registry = load_plugins()
    suite = load_suite(
        rig.suite("magnitude: {sparsity: [0.2, 0.4, 0.6]}"),
        registry=registry,
    )
    planned = plan(suite, registry)
    store = RunStore.create(tmp_path / "run", planned, suite.text)
    clock = Clock()
    with closing(launcher()) as starter:
        list(
            Session(store, registry, clock, starter).run(
                LocalEngine(LocalEngine.Options()), planned.cells
            )
        )
    first, *others = clock.until_load
    print(f"first cell {first:.2f} s (with the imports)")
    figure("a cell's process until it loads", f"{min(others):.2f} s", f"less than {START_S:g} s")
    assert min(others) < START_S  # what else runs on the machine only adds


def test_a_thousand_cells_are_planned_within_a_second(tmp_path: Path, figure: Any) -> None:
    rig = Rig(tmp_path)
    registry = load_plugins()
    ratios = ", ".join(f"{number / 2000:g}" for number in range(1, 1000))
    path = rig.suite(f"magnitude: {{sparsity: [{ratios}]}}")
    begun = time.process_time()
    suite = load_suite(path, registry=registry)
    planned = plan(suite, registry)
    spent = time.process_time() - begun
    store = RunStore.create(tmp_path / "run", planned, suite.text)
    figure("plan of 1,000 cells", f"{spent:.2f} s of CPU", f"less than {PLAN_S:g} s")
    assert len(planned.cells) == 1000
    assert len(store.read_plan().cells) == 1000
    assert spent < PLAN_S
