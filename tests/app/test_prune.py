"""`prunebench.prune`: from a folder, and a model in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunebench
from tiny import tiny_checkpoint, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_model_in_a_folder_is_loaded_and_pruned(folder: Path) -> None:
    seen = []
    result = prunebench.prune(
        "model",
        "wanda",
        calibration={"corpus": "text.txt", "windows": 2, "length": 16},
        options={"sparsity": 0.5},
        progress=lambda phase, done, total: seen.append(phase),
    )
    assert result.audit.sparsity == pytest.approx(0.5, abs=0.01)
    assert result.tokenizer is not None
    assert {"load", "prune"} <= set(seen)
    assert not (folder / "pruned").exists()


def test_every_step_of_llm_pruner_gets_the_next_windows_of_the_text(
    folder: Path, monkeypatch
) -> None:
    seen: list[torch.Tensor] = []
    original = prunebench.Context.fresh_windows

    def spy(self: prunebench.Context, number: int) -> torch.Tensor:
        seen.append(original(self, number))
        return seen[-1]

    monkeypatch.setattr(prunebench.Context, "fresh_windows", spy)
    text = {"corpus": "text.txt", "length": 16, "sampler": "consecutive"}
    for windows, steps in ((2, 3), (6, 2)):  # the first call of each draws the last windows
        prunebench.prune(
            "model",
            "llm-pruner",
            calibration={**text, "windows": windows},
            options={"ratio": 0.5, "iterative_steps": steps},
        )
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(torch.cat(seen[1:4]), seen[5])


def test_steps_of_llm_pruner_take_other_rows_if_the_text_is_counted_in_rows(
    folder: Path, monkeypatch
) -> None:
    seen: list[torch.Tensor] = []
    original = prunebench.Context.fresh_windows

    def spy(self: prunebench.Context, number: int) -> torch.Tensor:
        seen.append(original(self, number))
        return seen[-1]

    monkeypatch.setattr(prunebench.Context, "fresh_windows", spy)
    rows = [json.dumps({"text": f"{number} quick brown foxes. " * 20}) for number in range(30)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    prunebench.prune(
        "model",
        "llm-pruner",
        calibration={"corpus": "rows.jsonl", "rows": 4, "length": 32},
        options={"ratio": 0.5, "iterative_steps": 2},
    )
    assert not torch.equal(seen[1][:4], seen[2][:4])


def test_a_model_in_memory_is_pruned_in_place(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    result = prunebench.prune(
        model, "shortgpt", options={"count": 1}, calibration=IDS, out=tmp_path / "pruned"
    )
    assert result.model is model
    assert result.audit.removed_layers == [result.notes["removed_in_order"][0]]
    assert torch.equal(prunebench.load_pruned(tmp_path / "pruned")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("wanda", {}, "needs calibration"),
        ("wand", {}, "unknown method"),
        ("magnitude", {"sparsity": 2}, "magnitude: sparsity: "),
        ("magnitude", {"recovery": "lora"}, "neither allocation nor recovery"),
    ],
)
def test_bad_input_for_a_model_in_memory_is_an_error(
    method: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(prunebench.PrunebenchError, match=said):
        prunebench.prune(tiny_model("llama"), method, options=options)


def test_a_tensor_is_for_a_model_in_memory(folder: Path) -> None:
    with pytest.raises(prunebench.PrunebenchError, match="not loaded yet"):
        prunebench.prune("model", "wanda", calibration=IDS)


def test_a_misspelt_parameter_or_a_misplaced_option_is_an_error() -> None:
    with pytest.raises(prunebench.PrunebenchError, match="did you mean 'device'"):
        prunebench.prune("model", "wanda", devise="cpu")
    with pytest.raises(prunebench.PrunebenchError, match="goes into `options`"):
        prunebench.prune("model", "wanda", sparsity=0.5)


def test_an_option_without_effect_is_refused_for_a_model_in_memory_too() -> None:
    with pytest.raises(
        prunebench.PrunebenchError, match=r"magnitude: min_density: has no effect with scope"
    ):
        prunebench.prune(tiny_model("llama"), "magnitude", options={"min_density": 0.2})


def test_a_setting_that_reads_no_text_needs_no_tokens() -> None:
    result = prunebench.prune(tiny_model("llama"), "llm-pruner", options={"importance": "l2"})
    assert result.audit.widths


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": -1}, "seed '-1' is not valid"),
        ({"seed": 2**63}, "seed '9223372036854775808' is not valid"),
        ({"seed": True}, "seed 'True' is not valid"),
        ({"seed": float("nan")}, "seed 'nan' is not valid"),
        ({"device": "tpu"}, "device 'tpu' is not valid"),
        ({"layer_device": "cuda:x"}, "layer device 'cuda:x' is not valid"),
        ({"shard_size": 0}, "shard size '0' is not valid"),
        ({"shard_size": "inf GB"}, "shard size 'inf GB' is not valid"),
    ],
)
def test_settings_have_bounds(settings: dict[str, object], said: str) -> None:
    with pytest.raises(prunebench.PrunebenchError, match=said):
        prunebench.prune(tiny_model("llama"), "magnitude", **settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 3}, r"'seed' is no option of 'magnitude', .*seed="),
        ({"sparsity": True}, "magnitude: sparsity: "),
        ({"sparsity": float("nan")}, "magnitude: sparsity: "),
        ({"sparsity": "0.5"}, "magnitude: sparsity: "),
        ({"min_density": float("inf")}, "magnitude: min_density: "),
        ({"mode": object()}, "magnitude: object is no value of an option"),
    ],
)
def test_options_for_a_model_in_memory_are_checked_as_strictly_as_in_a_suite(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(prunebench.PrunebenchError, match=said):
        prunebench.prune(tiny_model("llama"), "magnitude", options=options)


def test_options_may_be_what_python_has_for_them() -> None:
    np = pytest.importorskip("numpy")
    options = {"sparsity": np.float64(0.25)}
    result = prunebench.prune(tiny_model("llama"), "magnitude", options=options)
    assert result.audit.sparsity == pytest.approx(0.25, abs=0.01)
