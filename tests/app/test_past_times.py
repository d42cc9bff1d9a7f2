"""How long cells will take, from those that ran on this machine."""

from __future__ import annotations

import json

import pytest

import report_builder as build
from prunebench.app.past_times import PastCell, PastTimes, past_times
from prunebench.measure.devices.provenance import machine
from prunebench.plugin.host import load_plugins

WANDA, OTHER, MAGNITUDE = (
    build.cell("wanda", sparsity=0.5),
    build.cell("wanda", sparsity=0.6),
    build.cell("magnitude", sparsity=0.5),
)
ELSEWHERE = build.cell("wanda", "another model", sparsity=0.5)


@pytest.fixture
def known():
    return PastTimes([PastCell(WANDA, 60.0, 100), PastCell(WANDA, 80.0, 100)])


def test_the_same_cell_takes_as_long_again(known):
    assert known.seconds(WANDA, None) == 70


def test_other_cells_of_the_model_are_scaled_by_their_work(known):
    assert known.seconds(OTHER, 200) == 140
    assert known.seconds(MAGNITUDE, 50) == 35
    both = PastTimes([*known.cells, PastCell(MAGNITUDE, 10.0, 100)])
    assert both.seconds(build.cell("magnitude", sparsity=0.6), 100) == 10


def test_what_nothing_alike_has_run_is_not_guessed(known):
    assert known.seconds(ELSEWHERE, 100) is None
    assert known.seconds(OTHER, None) is None
    # Loading and starting decide the time of a cell with a hundredth of the work.
    assert known.seconds(OTHER, 1001) is None
    assert known.seconds(OTHER, 9) is None
    assert known.seconds(OTHER.model_copy(update={"device": "cuda"}), 100) is None
    assert PastTimes().seconds(WANDA, 100) is None


def test_records_beside_the_folder_count_if_they_are_of_this_machine(tmp_path):
    mine, theirs, broken = (build.record(cell, 20.0, 1.0) for cell in (WANDA, MAGNITUDE, OTHER))
    mine.provenance |= {key: machine()[key] for key in ("cpu", "cpu_cores_usable", "gpus")}
    store = build.store(tmp_path / "runs" / "a", [mine, theirs, broken])
    build.store(tmp_path / "runs" / "b", [build.failed(ELSEWHERE)])
    store.record_path(broken.id).write_text("{")
    found = past_times(tmp_path / "runs" / "new", load_plugins())
    assert [one.cell.id for one in found.cells] == [WANDA.id]
    assert found.cells[0].seconds == pytest.approx(sum(seconds for _, seconds in build.PHASES))
    assert found.cells[0].flop > 0
    assert past_times(tmp_path / "nowhere" / "new", load_plugins()).cells == []
    text = json.loads(store.record_path(mine.id).read_text())
    text["cell"]["method"]["name"] = "gone"
    store.record_path(mine.id).write_text(json.dumps(text))
    assert past_times(tmp_path / "runs" / "new", load_plugins()).cells[0].flop is None
