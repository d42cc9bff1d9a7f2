"""Engines by name, engines of plugins, what a Ray task is asked for and what its keeper tells; no Ray in here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import prunebench
from prunebench.engine.launcher import launcher
from prunebench.engine.local import LocalEngine
from prunebench.engine.ray.agent import run_on_node
from prunebench.engine.ray.cluster import Needs, Node, joined, needs_of
from prunebench.engine.ray.messages import CellTask, RunContext, travelling
from prunebench.engine.select import built_in, choose
from prunebench.engine.session import Session
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef
from prunebench.plugin.api.engine import BUILT_IN
from prunebench.plugin.files import VARIABLE as PLUGIN_FILES
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from prunebench.record.record import Record
from prunebench.store.plan_file import Plan
from prunebench.store.run_folder import RunStore
from prunebench.text.resolve import resolve_corpus
from rig import Rig

PLUGIN = """
from prunebench import Engine, Field, Method, Options, hookimpl


class Backwards(Engine):
    name = "backwards"

    class Options(Options):
        fault: str = Field("", description="what goes wrong")

    def run(self, cells, context):
        for cell in reversed(cells):
            if self.options.fault == "raises":
                raise ZeroDivisionError("nothing to divide by")
            if self.options.fault == "silent":
                continue
            context.started(cell)
            context.moved(cell, "prune", 1, 2)
            yield context.lost(cell, phase="prune", kind="power cut", message="it was dark", hint="wait for the morning")


class Telling(Method):
    name = "telling"

    def prune(self, model, context):
        print("told by a plugin that came along")


@hookimpl
def prunebench_register_engine():
    return Backwards


@hookimpl
def prunebench_register_method():
    return Telling
"""


class Watch:
    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, cell: Cell) -> None:
        self.said.append(f"started {cell.seed}")

    def moved(self, cell: Cell, event: object) -> None:
        self.said.append(f"moved {cell.seed} {event.phase} {event.done} {event.total}")

    def finished(self, record: Record) -> None:
        self.said.append(f"finished {record.cell.seed} {record.status}")


def cell(seed: int = 0, **facts: object) -> Cell:
    method = MethodRef(name="dense", distribution="prunebench", version="0")
    return Cell(
        model=ModelRef(name="m", kind="folder", location="/m"), method=method, seed=seed, **facts
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "mine.py").write_text(PLUGIN)
    with with_files([tmp_path / "mine.py"]):
        return load_plugins()


@pytest.fixture
def session(tmp_path: Path, registry: Registry) -> Iterator[Callable[[list[Cell]], Session]]:
    with closing(launcher()) as starter:

        def make(cells: list[Cell]) -> Session:
            store = RunStore.create(
                tmp_path / "run", Plan("s", "S", tuple(cells), "0"), "name: s\n"
            )
            return Session(store, registry, Watch(), starter)

        yield make


def test_a_plugins_engine_runs_the_cells(session, registry: Registry) -> None:
    cells = [cell(0), cell(1)]
    run = session(cells)
    found = list(run.run(choose("backwards", {}, registry), cells))
    assert [record.cell.seed for record in found] == [1, 0]
    assert run.watcher.said == [
        *("started 1", "moved 1 prune 1 2", "finished 1 failed"),
        *("started 0", "moved 0 prune 1 2", "finished 0 failed"),
    ]
    stored, damaged = run.store.records(cells)
    assert not damaged
    assert {record.error.type for record in stored} == {"power cut"}
    assert stored[0].error.hint == "wait for the morning"
    assert stored[0].error.command.endswith(f"specs/{cells[0].id}.json")
    assert not run.store.finished(cells[0])  # so the next run repeats it


def test_an_engine_that_fails_is_named(session, registry: Registry) -> None:
    run = session([cell()])
    with pytest.raises(
        PrunebenchError,
        match="the engine 'backwards' failed: ZeroDivisionError: nothing to divide by",
    ):
        list(run.run(choose("backwards", {"fault": "raises"}, registry), [cell()]))


def test_a_cell_that_an_engine_forgets_has_failed(session, registry: Registry) -> None:
    run = session([cell()])
    [record] = run.run(choose("backwards", {"fault": "silent"}, registry), [cell()])
    assert (record.status, record.error.type) == ("failed", "no record")


def test_what_an_engine_brings_must_be_the_cells_record(session, registry: Registry) -> None:
    run = session([cell()])
    other = run.lost(cell(7), phase="start", kind="k", message="m")
    for text, words in (
        ("{}", "is no record"),
        (other.model_dump_json(by_alias=True), f"gave the record of cell {other.id}"),
    ):
        with pytest.raises(PrunebenchError, match=words):
            run.record(cell(), text)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rya", {}, r"no engine 'rya' \(did you mean 'ray'\? \(known: backwards, local, ray\)\)"),
        ("local", {"slot": "2"}, r"engine 'local': slot: .*its options: slots"),
        ("local", {"slots": "two"}, "engine 'local': slots: Input should be a valid integer"),
        ("ray", {"patience_s": "-1"}, "patience_s: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_engine_is_one_clear_line(
    registry: Registry, name: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(PrunebenchError, match=words):
        choose(name, options, registry)


def test_the_built_in_engines_are_there_without_any_plugin() -> None:
    assert tuple(entry.name for entry in built_in()) == BUILT_IN
    engine = choose("local", {"slots": "2"}, Registry())
    assert isinstance(engine, LocalEngine)
    assert engine.options.slots == 2


def test_the_command_line_tells_what_is_wrong_with_an_engine(tmp_path: Path) -> None:
    for arguments, words in (
        (["--ray-address", "auto"], "--ray-address goes with --engine ray"),
        (["--engine-option", "slots"], "write KEY=VALUE"),
    ):
        done = CliRunner().invoke(prunebench, ["run", "smoke", *arguments])
        assert done.exit_code == 2, done.output
        assert words in done.output
    rig = Rig(tmp_path)
    done = rig.prunebench("run", rig.suite("magnitude"), "--engine", "rya")
    assert done.returncode == 2
    assert "there is no engine 'rya'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PrunebenchError, match=r"pip install 'prunebench\[ray\]'"), joined(None):
        pass


SMALL, LARGE, PLAIN = Node("a", 16, 2, 64e9), Node("b", 64, 8, 512e9), Node("c", 4, 0, 16e9)


@pytest.mark.parametrize(
    ("facts", "nodes", "needs"),
    [
        ({}, [PLAIN], Needs(4)),
        ({"threads": 2}, [PLAIN], Needs(2)),
        ({"threads": 9}, [PLAIN], Needs(4)),  # more than there are would wait for ever
        ({}, [PLAIN, SMALL], Needs(8, 1)),
        ({"device": "cpu"}, [PLAIN, SMALL], Needs(4)),
        ({"device": "cuda", "gpus": 4}, [SMALL, LARGE], Needs(32, 4)),
        ({"gpus": 3}, [PLAIN], Needs(4)),
        ({"memory_limit_bytes": 8_000_000_000}, [PLAIN], Needs(4, 0, 8_000_000_000)),
    ],
)
def test_what_a_cell_needs_of_a_node(
    facts: dict[str, object], nodes: list[Node], needs: Needs
) -> None:
    assert needs_of(cell(**facts), nodes) == needs
    assert any(needs.fit(node) for node in nodes)


def test_a_gpu_by_its_number_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="device 'cuda:1' names one GPU"):
        needs_of(cell(device="cuda:1"), [SMALL])
    assert not Needs(4, 3).fit(SMALL)
    assert not Needs(1, 0, 10**12).fit(LARGE)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("agent"))


def tiny(rig: Rig, registry: Registry) -> Cell:
    entry = registry["method"]["telling"]
    text = resolve_corpus("text.txt", base=rig.folder, corpora={})
    return Cell(
        model=ModelRef(name="model", kind="folder", location=str(rig.folder / "model")),
        method=MethodRef(name="telling", distribution=entry.distribution, version=entry.version),
        perplexity=(PerplexitySpec(corpus=text, split="all", length=16, windows=2),),
        device="cpu",
        threads=1,
        keep_model=True,
    )


def test_a_keeper_tells_all_of_its_cell(
    rig: Rig, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv(PLUGIN_FILES, raising=False)
    before = dict(os.environ)
    cell = tiny(rig, registry)
    brought = {**rig.environment, "OMP_NUM_THREADS": "1"}
    context = RunContext(
        version("prunebench"), "feed0123", travelling(brought), (("mine.py", PLUGIN.encode()),)
    )
    told = list(run_on_node(context, CellTask(cell.model_dump_json(), 1)))
    assert dict(os.environ) == before
    assert told[0][0] == "at"
    assert told[-1][0] == "record"
    record = Record.model_validate_json(told[-1][1])
    assert record.status == "ok", record.error
    assert record.cell == cell
    phases = [what[0] for kind, what in told if kind == "event"]
    assert phases[0] == "fetch"
    assert {"load", "prune", "perplexity"} <= set(phases)
    assert b"told by a plugin that came along" in b"".join(
        what for kind, what in told if kind == "log"
    )
    assert b"perplexity" in [what for kind, what in told if kind == "partial results"][-1]
    sizes: dict[str, int] = {}
    for kind, what in told:
        if kind == "model":
            sizes[what[0]] = sizes.get(what[0], 0) + len(what[1])
    assert sizes["model.safetensors"] == record.audit.disk_bytes
    assert "config.json" in sizes


def test_a_node_with_another_version_says_so() -> None:
    with pytest.raises(PrunebenchError, match=r"0\.0\.1 where the run was started"):
        next(run_on_node(RunContext("0.0.1", "feed", {}, ()), CellTask("{}", 1)))
