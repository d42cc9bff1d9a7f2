"""GPUs are divided among cells that run side by side."""

from __future__ import annotations

import os

import pytest

from prunebench.engine.gpus import Slot, slots_for, visible_gpus
from prunebench.errors import PrunebenchError
from prunebench.experiment.cell import Cell
from prunebench.experiment.model import ModelRef, Placement
from prunebench.experiment.plugins import MethodRef


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
