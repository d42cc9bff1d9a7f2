"""Cells side by side: timed phases run alone, and results are the same as one after another."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from prunebench.cell.events import Event
from prunebench.engine.job import Launcher
from prunebench.engine.launcher import launcher
from prunebench.engine.local import LocalEngine
from prunebench.engine.session import Session
from prunebench.experiment.cell import Cell
from prunebench.isolation.processes import MARK
from prunebench.isolation.timing_lock import TIMED
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig
from watchers import Quiet

PLUGIN = """
import json, os, time
from contextlib import contextmanager
from pathlib import Path
from prunebench import Method, hookimpl
from prunebench.cell.phases import Phases
from prunebench.measure.speed import bandwidth

inner = Phases.phase
folder = Path(os.environ["SPANS"])

@contextmanager
def phase(self, name):
    with inner(self, name):
        begun = time.monotonic()
        if name == "fetch" and (folder / "meet").exists():
            (folder / "meet" / str(os.getpid())).touch()
            while len(list((folder / "meet").iterdir())) < 2:
                time.sleep(0.01)
        yield
        with (folder / "spans").open("a") as file:
            file.write(json.dumps([os.getpid(), name, begun, time.monotonic()]) + "\\n")

if os.getpid() != int(os.environ["TESTS"]):  # the process of the tests goes on with others
    Phases.phase = phase
    bandwidth.BUDGET_S, bandwidth.HOST_BYTES = 0.0, 1 << 20  # not what is tested here

class Hanging(Method):
    name = "hanging"
    def prune(self, model, context):
        time.sleep(600)

@hookimpl
def prunebench_register_method():
    return Hanging
"""
"""Notes when phases ran. Two cells that fetch wait for each other, so that they do overlap."""


class Impatient(Quiet):
    """Interrupts the run as soon as a cell hangs."""

    def moved(self, cell: Cell, event: Event) -> None:
        if cell.method.name == "hanging" and event.phase == "prune":
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A rig whose environment and plugin hold in this process and in those of the cells."""
    rig = Rig(tmp_path_factory.mktemp("slots"))
    plugin = rig.folder / "spans_plugin.py"
    plugin.write_text(PLUGIN)
    rig.environment |= {"SPANS": str(rig.folder), "TESTS": str(os.getpid())}
    with pytest.MonkeyPatch.context() as patch, with_files([plugin]):
        for name, value in rig.environment.items():
            patch.setenv(name, value)
        yield rig


@pytest.fixture(scope="module")
def starter(rig: Rig) -> Iterator[Launcher]:
    with closing(launcher()) as starter:
        starter.start()
        yield starter


@pytest.fixture
def session(
    rig: Rig, starter: Launcher, tmp_path: Path
) -> Callable[..., tuple[Session, list[Cell]]]:
    def make(
        *methods: str, name: str, watcher: Quiet | None = None, more: str = ""
    ) -> tuple[Session, list[Cell]]:
        registry = load_plugins()
        suite = load_suite(rig.suite(*methods, latency=True, more=more), registry=registry)
        planned = plan(suite, registry)
        store = RunStore.create(tmp_path / name, planned, suite.text)
        return Session(store, registry, watcher or Quiet(), starter), list(planned.cells)

    return make


def result(record: Record) -> tuple[object, ...]:
    assert record.status == "ok", record.error
    assert record.quality is not None
    return record.cell, record.quality, record.audit


def test_two_slots_give_what_one_gives_and_time_nothing_side_by_side(rig: Rig, session) -> None:
    (rig.folder / "meet").mkdir()
    two, cells = session("magnitude", name="two")
    engine = LocalEngine(LocalEngine.Options(slots=2))
    beside = {record.id: record for record in two.run(engine, cells)}
    assert two.most_at_once == 2
    spans = [json.loads(line) for line in (rig.folder / "spans").read_text().splitlines()]

    (rig.folder / "meet").rename(rig.folder / "met")
    one, cells = session("magnitude", name="one")
    engine = LocalEngine(LocalEngine.Options())
    alone = {record.id: record for record in one.run(engine, cells)}
    assert one.most_at_once == 1
    assert list(alone) == [cell.id for cell in cells]
    assert {key: result(record) for key, record in beside.items()} == {
        key: result(record) for key, record in alone.items()
    }

    overlaps = [
        {mine[1], other[1]}
        for mine in spans
        for other in spans
        if mine[0] != other[0] and mine[2] < other[3] and other[2] < mine[3]
    ]
    assert {"fetch"} in overlaps
    assert not [phases for phases in overlaps if phases & set(TIMED)]
    assert {"load", "generate", "latency"} <= {name for _, name, _, _ in spans}


def test_a_cell_over_its_time_limit_is_a_row_that_names_the_limit(session) -> None:
    run, cells = session("hanging", name="limit", more="limits: {time_s: 0.5}")
    [record] = run.run(LocalEngine(LocalEngine.Options()), cells[1:])
    assert (record.status, record.error.type) == ("timeout", "timeout")
    assert record.error.message == "ended by the harness, the limit is 0.5 s"
    assert f"specs/{record.id}.json" in record.error.command


@pytest.mark.faults
def test_a_run_that_is_interrupted_ends_all_its_cells(rig: Rig, session, starter: Launcher) -> None:
    run, cells = session("hanging", "magnitude", name="left", watcher=Impatient())
    with pytest.raises(KeyboardInterrupt):
        list(run.run(LocalEngine(LocalEngine.Options(slots=2)), cells))
    # helpers of the cells end by themselves a moment later
    deadline = time.monotonic() + 10
    while len(marked(starter.mark)) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    [only] = marked(starter.mark)  # the fork server, which belongs to the session
    assert only[-1] == "prunebench.cell.fork_server"
    assert not (run.folder / "scratch").exists()


def marked(mark: str) -> list[list[str]]:
    """The command lines of the processes that carry ``mark`` or a mark made from it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(mark):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found
