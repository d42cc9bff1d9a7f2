"""Ids change between versions when an outcome does; the files of an older run keep theirs."""

from __future__ import annotations

import pytest

import small_records
from prunebench.experiment.cell import Cell
from prunebench.record.codec import from_json, to_json
from prunebench.store.run_folder import RunStore


@pytest.fixture
def older(tmp_path, monkeypatch):
    """A run folder from a version that hashed something else."""
    with monkeypatch.context() as then:
        identity = Cell.identity
        then.setattr(Cell, "identity", lambda self: {**identity(self), "draws": 1})
        cells = [small_records.cell(seed) for seed in (0, 1)]
        ids = [cell.id for cell in cells]
        store = small_records.store(tmp_path / "run", *cells)
        store.write(small_records.record(cells[0]))
    assert [small_records.cell(seed).id for seed in (0, 1)] != ids
    return RunStore.open(store.folder), ids


def test_its_cells_and_records_keep_their_ids(older):
    store, ids = older
    assert [cell.id for cell in store.read_plan().cells] == ids
    records, damaged = store.records()
    assert [(one.id, one.cell.id) for one in records] == [(ids[0], ids[0])]
    assert damaged == []
    assert store.finished(store.read_plan().cells[0])


def test_the_same_experiment_planned_now_is_another_cell(older):
    store, ids = older
    assert not store.finished(small_records.cell(0))
    assert small_records.cell(0).id not in ids


def test_a_record_goes_through_json_with_its_id(older):
    store, ids = older
    (record,), _ = store.records()
    assert from_json(to_json(record)).cell.id == ids[0]


def test_a_cell_under_its_own_id_is_the_same_value():
    cell = small_records.cell(0)
    assert cell.stored_as(cell.id) == cell


def test_a_copy_with_other_content_has_an_id_of_its_own():
    cell = small_records.cell(0)
    for one in (cell, cell.stored_as("0" * 16)):
        changed = one.model_copy(update={"seed": 1})
        assert changed.id == small_records.cell(1).id != one.id
        assert one.model_copy().id == one.id
    assert cell == small_records.cell(0)  # whether an id is known already changes no value
