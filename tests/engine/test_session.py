"""A session stores exactly one record of every cell, whatever its engine does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prunebench.engine.launcher import launcher
from prunebench.engine.select import choose
from prunebench.engine.session import Session
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.plugin.files import with_files
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from small_records import cell, store
from watchers import Noting

PLUGIN = """
from prunebench import Engine, Field, Options, hookimpl


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
            context.moved(cell, "prune", 1, 2, "loss 3")
            yield context.lost(cell, phase="prune", kind="power cut", message="it was dark", hint="wait for the morning")


@hookimpl
def prunebench_register_engine():
    return Backwards
"""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "mine.py").write_text(PLUGIN)
    with with_files([tmp_path / "mine.py"]):
        return load_plugins()


@pytest.fixture
def session(tmp_path: Path, registry: Registry) -> Iterator[Callable[[list[Cell]], Session]]:
    with closing(launcher()) as starter:
        yield lambda cells: Session(store(tmp_path / "run", *cells), registry, Noting(), starter)


def test_an_engine_of_a_plugin_runs_the_cells(session, registry: Registry) -> None:
    cells = [cell(0), cell(1)]
    run = session(cells)
    found = list(run.run(choose("backwards", {}, registry), cells))
    assert [record.cell.seed for record in found] == [1, 0]
    assert run.watcher.lines == [
        *("started 1", "moved 1 prune 1 2", "finished 1 failed"),
        *("started 0", "moved 0 prune 1 2", "finished 0 failed"),
    ]
    stored, damaged = run.store.records(cells)
    assert not damaged
    assert {record.error.type for record in stored} == {"power cut"}
    assert stored[0].error.hint == "wait for the morning"
    assert stored[0].error.command.endswith(f"specs/{cells[0].id}.json")
    assert not run.store.finished(cells[0])  # so the next run repeats it


def test_the_error_names_an_engine_that_fails(session, registry: Registry) -> None:
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


def test_text_from_elsewhere_must_be_the_record_of_the_cell(session) -> None:
    run = session([cell()])
    other = run.lost(cell(7), phase="start", kind="k", message="m")
    for text, words in (
        ("{}", "is no record"),
        (other.model_dump_json(by_alias=True), f"gave the record of cell {other.id}"),
    ):
        with pytest.raises(PrunebenchError, match=words):
            run.record(cell(), text)
