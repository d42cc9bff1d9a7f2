"""The run folder: what is written is read back, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.record.codec import CHECKSUM, checksum, to_json
from prunebench.store.plan_file import Plan
from prunebench.store.run_folder import DamagedRecord, RunStore
from small_records import cell, record, store


def test_plan_and_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    one, two = cell(0), cell(1)
    run = store(tmp_path / "run", one, two)
    run.write(record(two, "failed"))
    run.write(record(one))
    again = RunStore.open(tmp_path / "run")
    assert again.read_plan() == Plan("s", "s", (one, two), "0" * 64)
    good, bad = again.records()
    assert good == [record(one), record(two, "failed")]
    assert not bad
    assert again.finished(one)
    assert not again.finished(two)
    assert Cell.model_validate_json(again.spec_path(one.id).read_text()) == one


def called(text: str, cell_id: str) -> str:
    """A record with another cell's id, and a checksum that fits."""
    data = json.loads(text) | {"id": cell_id}
    del data[CHECKSUM]
    return json.dumps({**data, CHECKSUM: checksum(data)})


DAMAGE = {
    "truncated": (lambda text: text[: len(text) // 2], "not JSON"),
    "empty": (lambda _: "", "not JSON"),
    "foreign": (lambda _: '{"hello": 1}', "schema None"),
    "a list": (lambda _: "[]", "schema 'list'"),
    "newer": (
        lambda text: text.replace('"schema": 2', '"schema": 3'),
        "schema 3, this version reads 2",
    ),
    "hand-edited": (
        lambda text: text.replace('"status": "ok"', '"status": "failed"'),
        "its checksum does not match",
    ),
    "another cell's": (lambda _: to_json(record(cell(9))), "holds the record of cell"),
    # A reason is one line of a table.
    "two lines": (lambda text: called(text, "a\nb"), r"holds the record of cell 'a\nb'"),
    "binary": (lambda _: "\udcff", "can't decode"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_records_are_named_and_count_as_not_run(tmp_path: Path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    one = cell()
    run = store(tmp_path / "run", one)
    run.write(record(one))
    path = run.record_path(one.id)
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    found = run.read(one.id)
    assert isinstance(found, DamagedRecord)
    assert words in found.reason
    assert found.path == path
    assert not run.finished(one)


def test_a_new_record_does_not_overwrite_a_damaged_one(tmp_path: Path) -> None:
    one = cell()
    run = store(tmp_path / "run", one)
    run.record_path(one.id).parent.mkdir(exist_ok=True)
    for text in ("torn", "torn again", "once more"):
        run.record_path(one.id).write_text(text)
        assert not run.finished(one)
        run.write(record(one))
        assert run.finished(one)
    found = {path.name: path.read_text() for path in (tmp_path / "run" / "cells").glob("*.dam*")}
    assert found == {
        f"{one.id}.json.damaged": "torn",
        f"{one.id}.json.damaged-2": "torn again",
        f"{one.id}.json.damaged-3": "once more",
    }


def test_a_folder_that_is_not_this_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PrunebenchError, match="is not a run"):
        store(tmp_path, cell())
    with pytest.raises(PrunebenchError, match="is a file"):
        store(tmp_path / "notes.txt", cell())
    store(tmp_path / "run", cell(), suite="one")
    with pytest.raises(PrunebenchError, match="belongs to the suite 'one', not to 'two'"):
        store(tmp_path / "run", cell(), suite="two")


def test_records_of_cells_that_left_the_suite_are_kept_but_not_listed(tmp_path: Path) -> None:
    old, new = cell(0), cell(1)
    store(tmp_path / "run", old).write(record(old))
    run = store(tmp_path / "run", new)
    assert run.records() == ([], [])
    assert run.records([old])[0] == [record(old)]


def test_an_unreadable_plan_is_named(tmp_path: Path) -> None:
    run = store(tmp_path / "run", cell())
    run.plan_path.write_text('{"suite": "s"')
    with pytest.raises(PrunebenchError, match=r"plan\.json cannot be read"):
        run.read_plan()


def test_only_one_run_can_hold_a_folder(tmp_path: Path) -> None:
    run = store(tmp_path / "run", cell())
    with (
        run.lock(),
        pytest.raises(PrunebenchError, match="another run is writing"),
        RunStore(run.folder).lock(),
    ):
        pytest.fail("both held the folder")
    with run.lock():
        pass
