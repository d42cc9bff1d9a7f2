"""`run_suite`: what it tells its observer, what it returns, and what it leaves in the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from in_process import FILE
from prunebench.app import run_suite
from prunebench.app.plan import SuiteRequest
from prunebench.app.run import FinishedRun, RunStart
from prunebench.errors import PrunebenchError
from prunebench.plugin.files import with_files
from prunebench.store.run_folder import RunStore

TEXT = {"corpus": "tiny-text", "windows": 2, "length": 32}
SUITE = {
    "name": "mine",
    "models": "tiny-llama",
    "methods": [{"magnitude": {"sparsity": [0.5, 0.6]}}],
    "quality": {"perplexity": TEXT},
    "profile": None,
    "device": "cpu",
    "threads": 1,
}


@dataclass
class Observer:
    """Keeps everything that it is told."""

    start: RunStart | None = None
    said: list[str] = field(default_factory=list)

    @contextmanager
    def begin(self, start: RunStart) -> Iterator[Observer]:
        self.start = start
        self.said.append("open")
        yield self
        self.said.append("closed")

    def started(self, cell: object) -> None:
        self.said.append(f"started {cell.label}")

    def moved(self, cell: object, event: object) -> None:
        """In-process cells tell nothing."""

    def finished(self, record: object) -> None:
        self.said.append(f"{record.status} {record.cell.label}")


def run(folder: Path, *, report: bool = False, **request: object) -> tuple[Observer, FinishedRun]:
    observer = Observer()
    with with_files([FILE]):
        done = run_suite(
            SuiteRequest(SUITE, out=folder, **request),
            observer,
            engine="in-process",
            report=report,
        )
    return observer, done


def test_the_observer_is_told_of_the_run_and_of_each_cell(tmp_path: Path) -> None:
    observer, done = run(tmp_path / "run", only=["*0.5"])
    start = observer.start
    assert (start.suite, start.cells, len(start.to_run)) == ("mine", 2, 2)
    assert (start.former, start.damaged) == (None, ())
    assert observer.said == [
        "open",
        "started dense",
        "ok dense",
        "started magnitude sparsity=0.5",
        "ok magnitude sparsity=0.5",
        "closed",
    ]
    assert (done.cells, done.failed, done.report) == (2, (), None)
    assert done.measured_s > 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_selection_runs_a_part_and_the_folder_holds_the_whole_plan(tmp_path: Path) -> None:
    _, done = run(tmp_path / "run", only=["*0.5"])
    store = RunStore.open(done.folder)
    assert len(store.read_plan().cells) == 3
    assert len(store.records()[0]) == 2
    observer, done = run(tmp_path / "run", report=True)
    assert (observer.start.cells, len(observer.start.to_run)) == (3, 1)
    assert done.report == tmp_path / "run" / "report.html"
    assert "magnitude sparsity=0.6" in done.report.read_text()


def test_damaged_records_are_reported_and_their_cells_run_again(tmp_path: Path) -> None:
    _, done = run(tmp_path / "run", only=["dense"])
    [path] = (done.folder / "cells").glob("*.json")
    path.write_text("{", encoding="utf-8")
    observer, done = run(tmp_path / "run", only=["dense"])
    assert [damaged.path for damaged in observer.start.damaged] == [path]
    assert (len(observer.start.to_run), done.failed) == (1, ())


def test_a_wrong_engine_is_an_error_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="there is no engine 'locl'"):
        run_suite(SuiteRequest(SUITE, out=tmp_path / "run"), Observer(), engine="locl")
    assert not (tmp_path / "run").exists()
