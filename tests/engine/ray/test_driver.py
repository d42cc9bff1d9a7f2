"""The driver of the Ray engine against a fake Ray: messages, faults and lost nodes."""

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
from prunebench.plugin.api.engine import Engine
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from small_records import cell, store
from watchers import Quiet


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
    """The messages of a task; an exception among them is raised, and None never arrives."""

    def __init__(self, script: list[Any]) -> None:
        self.script = list(script)
        self.cancelled = False

    def __next__(self) -> Any:
        if self.cancelled:
            raise RayError("cancelled")
        if not self.script:
            raise StopIteration
        return self.script.pop(0)


class FakeRay:
    """The part of Ray that the driver uses; each script is what one task sends."""

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
        ready = [
            one for one in streams if one.cancelled or not one.script or one.script[0] is not None
        ]
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


class FakeEngine(Engine):
    name = "fake"

    def __init__(self, ray: FakeRay, needs: Needs = Needs(1), patience_s: float = 0.0) -> None:  # noqa: B008
        super().__init__(None)
        self.ray, self.needs, self.patience_s = ray, needs, patience_s

    def run(self, cells, context) -> Iterator[Record]:
        yield from Driver(self.ray, context, self.patience_s).run(
            [(cell, self.needs) for cell in cells]
        )


def good(of: Cell) -> str:
    return Record(id=of.id, cell=of, status="ok", started="then", finished="now").model_dump_json(
        by_alias=True
    )


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., tuple[list[Record], Session]]]:
    with closing(launcher()) as starter:

        def run(engine: FakeEngine, *cells: Cell) -> tuple[list[Record], Session]:
            session = Session(store(tmp_path / "run", *cells), load_plugins([]), Quiet(), starter)
            return list(session.run(engine, cells)), session

        yield run


AT = ("at", ("far", "n1"))


def test_messages_of_an_agent_end_up_in_the_run_folder(drive) -> None:
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
    ray = FakeRay(script)
    [record], session = drive(FakeEngine(ray, Needs(2, 1, 10**8)), cell())
    assert record.status == "ok"
    assert record.provenance["node"] == "far"
    assert session.store.read(record.id) == record
    assert session.store.log_path(record.id).read_text() == "one\ntwo\n"
    assert (session.store.model_path(record.id) / "config.json").read_text() == "{}"
    assert not session.store.partial_results_path(record.id).exists()
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
def test_a_lost_cell_is_a_failed_record_and_the_others_go_on(drive, kind: str) -> None:
    fault, status, words = LOST[kind]
    faulty = [
        AT,
        ("log", b"last words\n"),
        ("event", ("prune", 0, 0)),
        *([] if fault is None else [fault]),
    ]
    found, session = drive(
        FakeEngine(FakeRay(faulty, [AT, ("record", good(cell(1)))])), cell(0), cell(1)
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


def test_a_file_name_cannot_lead_out_of_the_models_folder(drive) -> None:
    [record], session = drive(FakeEngine(FakeRay([AT, ("model", ("../../escaped", b"x"))])), cell())
    assert record.error is not None
    assert record.error.message == "a node sent a file called '../../escaped'"
    assert not list(session.folder.rglob("escaped"))


def test_a_cell_that_no_node_has_room_for_has_failed(drive) -> None:
    ray = FakeRay([None])
    [record], _ = drive(FakeEngine(ray, Needs(8)), cell())
    assert record.error is not None
    assert (record.error.type, record.error.message) == (
        "no node",
        "no node is left with 8 CPUs, 0 GPUs",
    )
    assert ray.streams[0].cancelled


def test_interrupting_the_run_cancels_all_tasks(drive) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    ray = FakeRay([AT, interrupt], [AT, None])
    with pytest.raises(KeyboardInterrupt):
        drive(FakeEngine(ray), cell(0), cell(1))
    assert all(stream.cancelled for stream in ray.streams)
