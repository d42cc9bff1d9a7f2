"""What cells of one dense model find out about it once, and what makes them look again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunebench.app.one_cell import one_cell
from prunebench.cell import pipeline, setup
from prunebench.cell.dense_counts import DenseCounts
from prunebench.cell.phases import Phases
from prunebench.cell.pipeline import PrunedCell, build_pruned_model
from prunebench.cell.setup import CellSetup
from prunebench.errors import PrunebenchError
from prunebench.measure.audit import count_layers
from prunebench.plugin.host import load_plugins
from tiny import tiny_checkpoint, tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which checks of the dense model ran."""
    seen: list[str] = []
    for module, name in (
        (setup, "check_dense_weights"),
        (setup, "check_dense_logits"),
        (pipeline, "count_layers"),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *given, real=real, name=name: (seen.append(name), real(*given))[1],
        )
    return seen


ALL = ["check_dense_weights", "check_dense_logits", "count_layers"]


def pruned(folder: Path, sparsity: float = 0.5, dtype: str = "float32") -> PrunedCell:
    registry = load_plugins()
    method = {"magnitude": {"sparsity": sparsity}}
    cell = one_cell(str(folder), method, registry, command="a test")
    cell = cell.model_copy(update={"model": cell.model.model_copy(update={"dtype": dtype})})
    return build_pruned_model(CellSetup(cell, registry, Phases(), "cpu"))


def test_later_cells_of_a_model_take_the_counts_of_the_first(tmp_path, looked) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    first = pruned(folder)
    assert looked == ALL
    again, other = pruned(folder), pruned(folder, 0.25)
    assert looked == ALL
    assert again.dense == first.dense == other.dense
    assert again.audit == first.audit
    assert other.audit.zeros < first.audit.zeros


def test_other_files_and_types_are_looked_at(tmp_path, looked) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    dense = pruned(folder).dense
    pruned(folder, dtype="bfloat16")
    assert looked == 2 * ALL
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0] = 0
    save_file(weights, path, {"format": "pt"})
    zeros = weights["model.layers.0.mlp.up_proj.weight"].shape[1]
    assert pruned(folder).dense.zeros == dense.zeros + zeros
    assert looked == 3 * ALL


def test_a_model_that_is_not_finite_is_refused_every_time(tmp_path, looked) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    for _ in range(2):
        with pytest.raises(PrunebenchError, match="up_proj"):
            pruned(folder)
    assert looked == 2 * ALL[:1]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_counts_are_read_as_they_were_written(family: str) -> None:
    model = tiny_model(family)
    counts = count_layers(model)
    DenseCounts(lambda: family).store(counts)
    plain = [replace(each, groups={}, violations={}) for each in counts]
    assert DenseCounts(lambda: family).load() == plain
    assert DenseCounts(lambda: "another").load() is None
    DenseCounts(None).store(counts)
    assert DenseCounts(None).load() is None
