"""`plan_suite`: a suite is read and planned once; a selection is a part of its plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.app import plan_suite
from prunebench.app.plan import SuiteRequest
from prunebench.errors import PrunebenchError
from prunebench.suite import plan as planning

SUITE = {"name": "mine", "models": "tiny-llama", "methods": ["magnitude", "random"], "seeds": [3]}


def test_a_selection_does_not_shorten_the_plan() -> None:
    planned = plan_suite(SuiteRequest(SUITE, only=["random"]))
    assert [cell.method.name for cell in planned.cells] == ["dense", "random"]
    assert [cell.method.name for cell in planned.plan.cells] == ["dense", "magnitude", "random"]
    assert all(cell in planned.plan.cells for cell in planned.cells)


def test_the_grid_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    make = planning._grid
    monkeypatch.setattr(planning, "_grid", lambda *args: grids.append(args) or make(*args))
    plan_suite(SuiteRequest(SUITE, only=["random"], skip=["magnitude"]))
    assert len(grids) == 1


def test_the_folder_has_the_name_of_the_suite_unless_another_is_given() -> None:
    assert plan_suite(SuiteRequest(SUITE)).folder == Path("runs/mine")
    assert plan_suite(SuiteRequest(SUITE, out=Path("here"))).folder == Path("here")


def test_overrides_change_a_suite_that_is_data() -> None:
    planned = plan_suite(SuiteRequest(SUITE, overrides=["name=other", "seeds=[4]"]))
    assert planned.suite.name == "other"
    assert {cell.seed for cell in planned.cells} == {4}
    assert "# --set seeds=[4]" in planned.suite.text
    assert SUITE["seeds"] == [3]


def test_problems_of_a_suite_that_is_data_name_the_key() -> None:
    with pytest.raises(PrunebenchError, match=r"^suite: methods\.magnitud: unknown method"):
        plan_suite(SuiteRequest({**SUITE, "methods": ["magnitud"]}))
    with pytest.raises(PrunebenchError, match="no cell matches"):
        plan_suite(SuiteRequest(SUITE, only=["wanda"]))
