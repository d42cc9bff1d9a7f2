"""The checkpoint does not configure the measurement: what is loaded is what was hashed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import prunebench
from prunebench.app.one_cell import one_cell
from prunebench.cell.events import EventWriter
from prunebench.cell.run import run_cell
from prunebench.measure.speed.compare_forms import generate_s
from prunebench.model.load import load, load_bare, load_pruned
from prunebench.plugin.host import load_plugins
from prunebench.record.record import Record
from tiny import tiny_checkpoint

IDS = torch.arange(20)[None] * 7 % 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def logits(tmp_path: Path) -> torch.Tensor:
    plain = tiny_checkpoint(tmp_path / "plain")
    return load(plain, dtype="float32", device="cpu").model(IDS).logits


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def record_of(folder: Path, tmp_path: Path, method: str = "dense", **options: Any) -> Record:
    cell = one_cell(str(folder), {method: options}, load_plugins(), command="a test", device="cpu")
    with (tmp_path / "events").open("w") as file:
        record = run_cell(cell, events=EventWriter(file), command="")
    assert record.status == "ok", record.error
    return record


CONFIG: dict[str, Any] = {
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "kernels-community/flash-attn",
    "experts_implementation": "unheard-of",
    "use_cache": False,
    "return_dict": False,
    "use_return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "torchscript": True,
    "is_encoder_decoder": True,
    "device_map": "cuda:7",
    "max_memory": {"0": "1GB"},
    "tp_plan": "auto",
    "gradient_checkpointing": True,
    "transformers_weights": "elsewhere.safetensors",
    "compile_config": {"mode": "max-autotune"},
}


@pytest.mark.parametrize("key", CONFIG)
def test_a_setting_in_the_config_changes_nothing_and_is_on_the_record(
    folder: Path, logits: torch.Tensor, key: str
) -> None:
    edit(folder, **{key: CONFIG[key]})
    loaded = load(folder, dtype="float32", device="cpu")
    found = loaded.model(IDS)
    assert torch.equal(found.logits, logits)
    assert found.attentions is None
    assert found.hidden_states is None
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.settings == {
        "attention": "sdpa",
        "ignored": {"config.json": {key: CONFIG[key]}},
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "no-such-type"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_suite_chooses_the_precision(
    folder: Path, logits: torch.Tensor, key: str, dtype: str
) -> None:
    edit(folder, **{"dtype": None, key: dtype})
    assert torch.equal(load(folder, dtype="float32", device="cpu").model(IDS).logits, logits)
    assert load_pruned(folder).dtype == torch.float32  # as the weights are stored


GENERATION: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.1,
    "num_beams": 4,
    "max_length": 3,
    "max_new_tokens": 2,
    "max_time": 1e-6,
    "eos_token_id": list(range(320)),
    "use_cache": False,
    "cache_implementation": "static",
    "repetition_penalty": 2.0,
    "prompt_lookup_num_tokens": 3,
    "return_dict_in_generate": True,
    "output_scores": True,
    "suppress_tokens": [1, 2, 3],
    "stop_strings": ["a"],
}


@pytest.mark.parametrize("key", GENERATION)
def test_generate_as_the_baseline_is_greedy_whatever_the_checkpoint_says(
    folder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(folder, dtype="float32", device="cpu").model
    edit(folder, "generation_config.json", **{key: GENERATION[key]})
    loaded = load(folder, dtype="float32", device="cpu")
    assert loaded.settings["ignored"] == {"generation_config.json": {key: GENERATION[key]}}
    prompt = IDS[:, :5]
    expected = plain.generate(prompt, max_new_tokens=6, eos_token_id=None)
    made, settings, generate = [], [], loaded.model.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        settings.append(loaded.model.generation_config.to_diff_dict())
        made.append(generate(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(loaded.model, "generate", watched)
    own = loaded.model.generation_config
    assert generate_s(loaded.model, prompt, 6) > 0
    assert torch.equal(made[0], expected)
    assert made[1].shape[1] == prompt.shape[1] + 1
    assert all(set(each) <= {"transformers_version"} for each in settings)
    # What the author chose is kept, for the model that is saved.
    assert loaded.model.generation_config is own
    assert getattr(own, key) == GENERATION[key]


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"cache_implementation": "no-such-cache"}', '{"num_return_sequences": 2}'],
)
def test_generation_settings_that_cannot_be_used_are_left_out(
    folder: Path, content: str, logits: torch.Tensor
) -> None:
    (folder / "generation_config.json").write_text(content)
    loaded = load(folder, dtype="float32", device="cpu")
    assert torch.equal(loaded.model(IDS).logits, logits)
    assert loaded.notes[0].startswith("has a generation_config.json that cannot be used: ")


# peft asks transformers for a property by its old name.
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def add_adapter(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)


@peft_warns
def test_an_adapter_beside_the_weights_is_not_put_on_top(
    folder: Path, tmp_path: Path, logits: torch.Tensor
) -> None:
    add_adapter(folder)
    loaded = load(folder, dtype="float32", device="cpu")
    assert torch.equal(loaded.model(IDS).logits, logits)
    assert not hasattr(loaded.model, "peft_config")
    files = "adapter_config.json, adapter_model.safetensors"
    assert record_of(folder, tmp_path).flags == [
        f"the checkpoint holds an adapter beside the model ({files}), which was not loaded"
    ]


@peft_warns
def test_an_adapter_beside_a_gguf_file_is_not_put_on_top(
    tiny_gguf: Path, tmp_path: Path, cache: Path, folder: Path
) -> None:
    add_adapter(folder)
    alone = prunebench.prune(str(tiny_gguf), "dense").model
    (folder / "model.gguf").write_bytes(tiny_gguf.read_bytes())
    (cache / "models").rename(tmp_path / "elsewhere")  # so that it is converted again
    assert torch.equal(
        prunebench.prune(str(folder / "model.gguf"), "dense").model(IDS).logits, alone(IDS).logits
    )


def test_what_the_model_does_not_use_is_flagged(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    extra = {f"value_head.{number}.weight": torch.ones(3) for number in range(4)}
    save_file(weights | extra, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(extra, folder / "other.safetensors")
    shown = "value_head.0.weight, value_head.1.weight, value_head.2.weight ..."
    expected = [
        "the checkpoint holds weight files that were not loaded: other.safetensors",
        f"the checkpoint holds 4 tensors that the model does not use: {shown}",
    ]
    assert record_of(folder, tmp_path).flags == expected
    assert load_bare(folder, dtype="float32", device="cpu").notes == tuple(
        flag.removeprefix("the checkpoint ") for flag in expected
    )
    result = prunebench.prune(str(folder), "magnitude", options={"sparsity": 0.5})
    assert list(result.flags) == expected


def test_layers_that_the_config_leaves_out_are_flagged(folder: Path, tmp_path: Path) -> None:
    edit(folder, num_hidden_layers=2)
    [flag] = record_of(folder, tmp_path).flags
    assert "tensors that the model does not use: model.layers.2." in flag


def test_a_plain_checkpoint_has_no_flags_and_nothing_ignored(folder: Path, tmp_path: Path) -> None:
    record = record_of(folder, tmp_path)
    assert record.flags == []
    assert record.provenance["settings"] == {"attention": "sdpa"}


def test_a_saved_model_keeps_its_authors_generation_settings(folder: Path, tmp_path: Path) -> None:
    edit(folder, "generation_config.json", do_sample=True, temperature=0.7, eos_token_id=[1, 2])
    prunebench.prune(str(folder), "magnitude", options={"sparsity": 0.5}, out=tmp_path / "pruned")
    saved = json.loads((tmp_path / "pruned" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["eos_token_id"]) == (True, 0.7, [1, 2])


def test_a_subfolder_is_not_looked_at(folder: Path, logits: torch.Tensor) -> None:
    """A folder `custom_generate` would replace `generate()`."""
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise AssertionError")
    (folder / "own.py").write_text("raise AssertionError")
    loaded = load(folder, dtype="float32", device="cpu")
    assert torch.equal(loaded.model(IDS).logits, logits)
    assert generate_s(loaded.model, IDS[:, :5], 3) > 0
