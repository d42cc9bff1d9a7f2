"""Cells side by side: as many as the GPUs allow, timed phases apart, and the same results as one after another."""

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
from prunebench.engine.gpus import Slot, slots_for, visible_gpus
from prunebench.engine.job import Launcher
from prunebench.engine.launcher import launcher
from prunebench.engine.local import LocalEngine
from prunebench.engine.session import Session
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.model import ModelRef, Placement
from prunebench.experiment.plugins import MethodRef
from prunebench.isolation.processes import MARK
from prunebench.isolation.timing_lock import TIMED
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from rig import Rig

SPANS = """
import json, os, time
from contextlib import contextmanager
from pathlib import Path
from prunebench import Method, hookimpl
from prunebench.cell.phases import Phases

inner = Phases.phase

@contextmanager
def phase(self, name):
    with inner(self, name):
        begun = time.monotonic()
        yield
        with Path(os.environ["SPANS"]).open("a") as file:
            file.write(json.dumps([os.getpid(), name, begun, time.monotonic()]) + "\\n")

if os.getpid() != int(os.environ["TESTS"]):  # the process of the tests goes on with others
    Phases.phase = phase

class Slow(Method):
    name = "slow"
    def prune(self, model, context):
        time.sleep(2)

class Slower(Slow):
    name = "slower"

class Hanging(Method):
    name = "hanging"
    def prune(self, model, context):
        time.sleep(600)

@hookimpl
def prunebench_register_method():
    return [Slow, Slower, Hanging]
"""


class Watch:
    def started(self, cell: Cell) -> None:
        """Nothing."""

    def moved(self, cell: Cell, event: object) -> None:
        """Nothing."""

    def finished(self, record: Record) -> None:
        """Nothing."""


class Impatient(Watch):
    """Leaves as soon as a cell hangs."""

    def moved(self, cell: Cell, event: object) -> None:
        if cell.method.name == "hanging" and isinstance(event, Event) and event.phase == "prune":
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    rig = Rig(tmp_path_factory.mktemp("slots"))
    (rig.folder / "spans_plugin.py").write_text(SPANS)
    return rig


@pytest.fixture(scope="module")
def starter(rig: Rig) -> Iterator[Launcher]:
    plugin = with_files([rig.folder / "spans_plugin.py"])
    with pytest.MonkeyPatch.context() as patch, plugin, closing(launcher()) as starter:
        for name, value in rig.environment.items():
            patch.setenv(name, value)
        patch.setenv("SPANS", str(rig.folder / "spans"))
        patch.setenv("TESTS", str(os.getpid()))
        starter.start()
        yield starter


@pytest.fixture
def session(
    rig: Rig, starter: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Session, list[Cell]]]:
    for name, value in rig.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPANS", str(rig.folder / "spans"))
    monkeypatch.setenv("TESTS", str(os.getpid()))
    (rig.folder / "spans").unlink(missing_ok=True)

    def make(*methods: str, name: str, watch: Watch | None = None) -> tuple[Session, list[Cell]]:
        registry = load_plugins()
        suite = load_suite(rig.suite(*methods), registry=registry)
        planned = plan(suite, registry)
        store = RunStore.create(tmp_path / name, planned, suite.text)
        return Session(store, registry, watch or Watch(), starter), list(planned.cells)

    return make


def result(record: Record) -> tuple[object, ...]:
    assert record.status == "ok", record.error
    assert record.quality is not None
    return record.cell, record.quality, record.audit


def test_two_slots_give_what_one_gives_and_time_nothing_side_by_side(rig: Rig, session) -> None:
    with with_files([rig.folder / "spans_plugin.py"]):
        two, cells = session("slow", "slower", name="two")
        beside = {
            record.id: record
            for record in two.run(LocalEngine(LocalEngine.Options(slots=2)), cells)
        }
        assert two.most_at_once == 2
        lines = (rig.folder / "spans").read_text().splitlines()
        one, cells = session("slow", "slower", name="one")
        alone = {record.id: record for record in one.run(LocalEngine(LocalEngine.Options()), cells)}
        assert one.most_at_once == 1
    assert list(alone) == [cell.id for cell in cells]
    assert {key: result(record) for key, record in beside.items()} == {
        key: result(record) for key, record in alone.items()
    }
    spans = [json.loads(line) for line in lines]
    pairs = [
        (mine, other)
        for mine in spans
        for other in spans
        if mine[0] != other[0] and mine[2] < other[3] and other[2] < mine[3]
    ]
    assert pairs  # 2 s of pruning beside something else, whichever slot was ready first
    assert not [pair for pair in pairs if {pair[0][1], pair[1][1]} & set(TIMED)]
    assert {"load", "generate", "latency"} <= {name for _, name, _, _ in spans}


@pytest.mark.faults
def test_a_run_that_is_left_ends_all_its_cells(rig: Rig, session, starter: Launcher) -> None:
    with with_files([rig.folder / "spans_plugin.py"]):
        run, cells = session("hanging", "slow", name="left", watch=Impatient())
        with pytest.raises(KeyboardInterrupt):
            list(run.run(LocalEngine(LocalEngine.Options(slots=2)), cells))
    time.sleep(0.2)
    left = []
    for process in psutil.process_iter():
        try:
            left += (
                [process.cmdline()]
                if process.environ().get(MARK, "").startswith(starter.mark)
                else []
            )
        except psutil.Error:
            continue
    [only] = left  # the one that starts cells, which is the caller's
    assert only[-1] == "prunebench.cell.fork_server"
    assert not (run.folder / "scratch").exists()


def cell(device: str = "auto", gpus: int | None = None, placement: Placement | None = None) -> Cell:
    method = MethodRef(name="dense", distribution="prunebench", version="0")
    model = ModelRef(name="m", kind="folder", location="/m", placement=placement)
    return Cell(model=model, method=method, device=device, gpus=gpus)


@pytest.mark.parametrize(
    ("cells", "wanted", "names", "slots"),
    [
        ([cell()] * 3, None, [], [None]),
        ([cell()] * 3, None, ["0"], [None]),
        ([cell()] * 3, None, ["0", "1"], ["0", "1"]),
        ([cell()], None, ["2", "GPU-ab"], ["2"]),
        ([cell()] * 9, 2, ["0", "1", "2"], ["0", "1"]),
        ([cell(gpus=2)] * 9, None, ["4", "5", "6", "7", "8"], ["4,5", "6,7"]),
        ([cell(gpus=2)] * 9, None, ["0", "1"], [None]),
        ([cell(placement=Placement())] * 9, None, ["0", "1", "2"], [None]),
        (
            [cell(placement=Placement(max_memory=(("0", 1), ("1", 1), ("cpu", 1))))] * 9,
            None,
            ["0", "1", "2"],
            ["0,1"],
        ),
        ([cell("cpu")] * 9, None, ["0", "1"], [None]),
        ([cell("cpu")] * 9, 4, ["0", "1"], [None] * 4),
        ([cell("cuda:1")] * 9, None, ["0", "1"], [None]),
        ([], None, ["0", "1"], [None]),
    ],
)
def test_cells_divide_the_gpus(cells, wanted, names, slots, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
    found = slots_for(cells, wanted, lambda: names)
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in found] == slots


def test_numbers_of_our_own_are_in_the_order_of_the_bus(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    [_, second] = slots_for([cell()] * 2, None, lambda: ["0", "1"])
    assert second == Slot({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})


@pytest.mark.parametrize(
    ("gpus", "wanted", "words"),
    [(3, None, "asks for 3 GPUs, and 2"), (1, 3, "3 slots need 3 GPUs")],
)
def test_more_gpus_than_there_are_is_an_error_before_anything_runs(
    gpus: int, wanted: int | None, words: str
) -> None:
    with pytest.raises(PrunebenchError, match=words):
        slots_for([cell(gpus=gpus)], wanted, lambda: ["0", "1"])


def test_gpus_decide_no_id() -> None:
    assert cell(gpus=4).id == cell().id


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")  # noqa: PTH110
def test_without_a_driver_there_are_no_gpus() -> None:
    assert visible_gpus() == []
