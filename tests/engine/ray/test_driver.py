"""The driver's side of the Ray engine, with a Ray that is played: what it makes of messages, faults and lost nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunebench.engine.launcher import launcher
from prunebench.engine.ray.cluster import Needs
from prunebench.engine.ray.driver import Driver
from prunebench.engine.session import Session
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef
from prunebench.plugin.api.engine import Engine
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from prunebench.store.plan_file import Plan
from prunebench.store.run_folder import RunStore


class RayError(Exception):
    pass


class NodeDiedError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Stream:
    """What a task yields; an exception among it is raised where it is taken, None never comes."""

    def __init__(self, says: list[Any]) -> None:
        self.says = list(says)
        self.cancelled = False

    def __next__(self) -> Any:
        if self.cancelled:
            raise RayError("cancelled")
        if not self.says:
            raise StopIteration
        return self.says.pop(0)


class PlayedRay:
    """As much of Ray as the driver uses."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        NodeDiedError=NodeDiedError,
        OutOfMemoryError=OutOfMemoryError,
        RayTaskError=RayTaskError,
    )

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.streams: list[Stream] = []
        self.asked: list[dict[str, Any]] = []
        self.alive = ["n1", "n2"]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, task: Any) -> Any:
        def options(**needs: Any) -> Any:
            def start(*_: Any) -> Stream:
                self.asked.append(needs)
                self.streams.append(Stream(self.scripts.pop(0)))
                return self.streams[-1]

            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def wait(
        self, streams: list[Stream], timeout: float, num_returns: int = 1
    ) -> tuple[list[Stream], list[Stream]]:
        ready = [one for one in streams if one.cancelled or not one.says or one.says[0] is not None]
        return ready[:1], []

    def get(self, value: Any) -> Any:
        if callable(value):
            value = value()
        if isinstance(value, Exception):
            raise value
        return value

    def cancel(self, stream: Stream, *, force: bool = False) -> None:
        stream.cancelled = True

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeID": name, "Resources": {"CPU": 4.0, "memory": 1e9}}
            for name in self.alive
        ]


class Played(Engine):
    name = "played"

    def __init__(self, ray: PlayedRay, needs: Needs = Needs(1), patience_s: float = 0.0) -> None:  # noqa: B008
        super().__init__(None)
        self.ray, self.needs, self.patience_s = ray, needs, patience_s

    def run(self, cells, context) -> Iterator[Record]:
        yield from Driver(self.ray, context, self.patience_s).run(
            [(cell, self.needs) for cell in cells]
        )


class Watch:
    def started(self, cell: Cell) -> None:
        """Nothing."""

    def moved(self, cell: Cell, event: object) -> None:
        """Nothing."""

    def finished(self, record: Record) -> None:
        """Nothing."""


def cell(seed: int = 0) -> Cell:
    method = MethodRef(name="dense", distribution="prunebench", version="0")
    return Cell(model=ModelRef(name="m", kind="folder", location="/m"), method=method, seed=seed)


def good(of: Cell) -> str:
    return Record(id=of.id, cell=of, status="ok", started="then", finished="now").model_dump_json(
        by_alias=True
    )


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., tuple[list[Record], Session]]]:
    with closing(launcher()) as starter:

        def run(engine: Played, *cells: Cell) -> tuple[list[Record], Session]:
            store = RunStore.create(tmp_path / "run", Plan("s", "S", cells, "0"), "name: s\n")
            session = Session(store, load_plugins([]), Watch(), starter)
            return list(session.run(engine, cells)), session

        yield run


AT = ("at", ("far", "n1"))


def test_what_a_keeper_tells_is_in_the_run_folder(drive) -> None:
    script = [
        *(
            AT,
            ("event", ("prune", 1, 2)),
            ("log", b"one\n"),
            ("partial results", b"{}"),
            ("log", b"two\n"),
        ),
        *(
            ("model", ("config.json", b"{")),
            ("model", ("config.json", b"}")),
            ("record", good(cell())),
        ),
    ]
    ray = PlayedRay(script)
    [record], session = drive(Played(ray, Needs(2, 1, 10**8)), cell())
    assert record.status == "ok"
    assert record.provenance["node"] == "far"
    assert session.store.read(record.id) == record
    assert session.store.log_path(record.id).read_text() == "one\ntwo\n"
    assert (session.store.model_path(record.id) / "config.json").read_text() == "{}"
    assert not session.store.partial_results_path(record.id).exists()  # of no use any more
    [asked] = ray.asked
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory"], asked["max_retries"]) == (
        2,
        1,
        10**8,
        0,
    )


LOST = {
    "node lost": (
        NodeDiedError("gone"),
        "failed",
        "the node far left the cluster while it ran there",
    ),
    "worker lost": (
        RayError("died\nmore"),
        "failed",
        "the process that supervised it on the node far ended: died",
    ),
    "node's memory": (OutOfMemoryError("x"), "out-of-memory", "the node far ran out of memory"),
    "node": (
        RayTaskError(PrunebenchError("no space there", hint="make some")),
        "failed",
        "no space there",
    ),
    "bad message": (("record", "{}"), "failed", "is no record"),
    "no record": (None, "failed", "its task ended without one"),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_cell_is_a_row_and_the_others_go_on(drive, kind: str) -> None:
    fault, status, words = LOST[kind]
    faulty = [
        AT,
        ("log", b"last words\n"),
        ("event", ("prune", 0, 0)),
        *([] if fault is None else [fault]),
    ]
    found, session = drive(
        Played(PlayedRay(faulty, [AT, ("record", good(cell(1)))])), cell(0), cell(1)
    )
    lost, other = sorted(found, key=lambda record: record.cell.seed)
    assert other.status == "ok"
    assert lost.status == status
    assert lost.error is not None
    assert (lost.error.type, lost.error.phase, lost.error.log_tail) == (
        kind,
        "prune",
        "last words\n",
    )
    assert words in lost.error.message
    assert [session.store.finished(one) for one in (cell(0), cell(1))] == [False, True]


def test_a_file_leads_nowhere_else(drive) -> None:
    [record], session = drive(Played(PlayedRay([AT, ("model", ("../../escaped", b"x"))])), cell())
    assert record.error is not None
    assert record.error.message == "a node sent a file called '../../escaped'"
    assert not list(session.folder.rglob("escaped"))


def test_a_cell_that_no_node_has_room_for_any_more_is_a_row(drive) -> None:
    ray = PlayedRay([None])
    [record], _ = drive(Played(ray, Needs(8)), cell())
    assert record.error is not None
    assert (record.error.type, record.error.message) == (
        "no node",
        "no node is left with 8 CPUs, 0 GPUs",
    )
    assert ray.streams[0].cancelled


def test_leaving_the_run_cancels_what_goes_on(drive) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    ray = PlayedRay([AT, interrupt], [AT, None])
    with pytest.raises(KeyboardInterrupt):
        drive(Played(ray), cell(0), cell(1))
    assert all(stream.cancelled for stream in ray.streams)
