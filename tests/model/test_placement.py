from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef, Placement
from prunebench.model.load import load, load_dispatched
from prunebench.model.placement import dispatch, is_dispatched, layers_by_device, max_memory
from tiny import tiny_checkpoint

SMALL, HALF, LARGE = 40_000, 250_000, 10**9


def placement(size: int) -> Placement:
    return Placement(max_memory=(("cpu", size),))


def dispatched(folder: Path, size: int) -> Any:
    return load_dispatched(folder, dtype="float32", device="cpu", placement=placement(size)).model


def test_layers_are_counted_by_device(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    assert layers_by_device(dispatched(tmp_path, SMALL)) == {"disk": 4}
    assert layers_by_device(dispatched(tmp_path, LARGE)) == {"cpu": 4}
    half = layers_by_device(dispatched(tmp_path, HALF))
    assert set(half) == {"cpu", "disk"}
    assert sum(half.values()) == 4


def test_a_model_in_memory_stays_there_without_a_gpu(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    model = load(tmp_path, dtype="float32", device="cpu").model
    dispatch(model, placement(LARGE), "cpu")
    assert layers_by_device(model) == {"cpu": 4}
    assert not is_dispatched(model)


def test_a_gpu_that_is_not_there_is_named() -> None:
    many = Placement(max_memory=(("0", 10**9), ("99", 10**9), ("cpu", 10**9)))
    with pytest.raises(PrunebenchError, match="max_memory names GPU 0; there are 0 for this cell"):
        max_memory(many, "cpu")


def test_a_placement_is_part_of_the_models_identity_only_if_it_is_given() -> None:
    model = ModelRef(name="m", kind="folder", location="/m", sha256="0" * 64)
    assert "placement" not in model.identity()
    small, large = (
        model.model_copy(update={"placement": placement(size)}) for size in (SMALL, LARGE)
    )
    assert len({json.dumps(each.identity()) for each in (model, small, large)}) == 3
    assert ModelRef.model_validate_json(small.model_dump_json()) == small
