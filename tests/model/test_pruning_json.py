"""A pruned model of any shape has bit-equal logits after it was saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunebench
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.checkpoint import safetensors_bytes, save
from prunebench.model.load import load
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups, keep_hidden
from tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


def widths(model) -> None:
    keep_groups(model, {Block(1, "attention"): [1]})
    keep_groups(model, {Block(2, "mlp"): range(0, 80, 3)})


def uniform(model) -> None:
    for index in range(4):
        keep_groups(model, {Block(index, "attention"): [0]})
        keep_groups(model, {Block(index, "mlp"): range(10, 60)})


def blocks(model) -> None:
    remove_blocks(model, [Block(0, "attention"), Block(2, "attention"), Block(3, "mlp")])


def everything(model) -> None:
    widths(model)
    blocks(model)
    remove_layers(model, [1])


def hidden(model) -> None:
    keep_hidden(model, range(0, 48, 2))


CUTS = [widths, uniform, blocks, everything, hidden]
IN_CONFIG = {"uniform": {"opt", "gpt_neox"}, "hidden": {"opt", "gpt_neox"}}
"""Families whose config cannot describe a cut that the configs of others can."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
def test_a_saved_model_loads_bit_for_bit(family, cut, tmp_path):
    if family == "gemma" and cut is hidden:
        pytest.skip("Gemma's embeddings are scaled by the width")
    model = tiny_model(family)
    cut(model)
    logits = model(IDS).logits
    folder = tmp_path / "kept"
    save(model, tiny_tokenizer(), folder, made_by={"method": cut.__name__})
    size = safetensors_bytes(model)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) == size

    again = prunebench.load_pruned(folder)
    assert type(again) is type(model)
    assert torch.equal(again(IDS).logits, logits)
    ones = torch.ones_like(IDS)
    text = [
        each.generate(IDS, attention_mask=ones, max_new_tokens=6, do_sample=False)
        for each in (model, again)
    ]
    assert torch.equal(*text)
    assert torch.equal(load(folder, dtype="float32", device="cpu").model(IDS).logits, logits), (
        "a suite can name it too"
    )

    plain = family not in IN_CONFIG.get(cut.__name__, set(FAMILIES))
    assert json.loads((folder / "pruning.json").read_text())["plain"] == plain
    if plain:
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, logits)
    else:
        with pytest.raises(OSError, match="no file named"):
            AutoModelForCausalLM.from_pretrained(folder)


def test_a_loaded_model_can_be_cut_and_saved_again(tmp_path):
    model = tiny_model("qwen2")
    widths(model)
    save(model, None, tmp_path / "once", made_by={})
    again = prunebench.load_pruned(tmp_path / "once")
    blocks(again)
    keep_groups(again, {Block(1, "mlp"): range(7)})
    save(again, None, tmp_path / "twice", made_by={})
    assert torch.equal(prunebench.load_pruned(tmp_path / "twice")(IDS).logits, again(IDS).logits)


def test_a_sharded_model_loads_in_another_dtype(tmp_path, monkeypatch):
    save(tiny_model("llama"), None, tmp_path / "dense")
    model = prunebench.load_pruned(tmp_path / "dense", dtype="bfloat16")
    widths(model)
    original = type(model).save_pretrained
    monkeypatch.setattr(
        type(model),
        "save_pretrained",
        lambda self, *args, **more: original(self, *args, **more, max_shard_size="50KB"),
    )
    save(model, None, tmp_path / "kept", made_by={})
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) > 1
    again = prunebench.load_pruned(tmp_path / "kept")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert prunebench.load_pruned(tmp_path / "kept", dtype="float32").dtype == torch.float32


def test_a_pruning_file_that_does_not_fit_is_named(tmp_path):
    model = tiny_model("llama")
    widths(model)
    save(model, None, tmp_path, made_by={})
    path = tmp_path / "pruning.json"
    plan = json.loads(path.read_text())
    plan["shape"]["layers"][2]["mlp_channels"] = 11
    path.write_text(json.dumps(plan))
    with pytest.raises(
        PrunebenchError, match=r"the weights do not fit the config: \d+ mismatched keys"
    ):
        prunebench.load_pruned(tmp_path)
    plan["shape"]["layers"].pop()
    path.write_text(json.dumps(plan))
    with pytest.raises(PrunebenchError, match=r"describes 3 layers, config\.json 4"):
        prunebench.load_pruned(tmp_path)
    path.write_text('{"format": 2}')
    with pytest.raises(PrunebenchError, match=r"pruning\.json: format: "):
        prunebench.load_pruned(tmp_path)


def test_a_folder_without_a_pruning_file_loads_as_it_is(tmp_path):
    model = tiny_model("opt")
    save(model, None, tmp_path)
    assert not (tmp_path / "pruning.json").exists()
    again = prunebench.load_pruned(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert len(anatomy(again).blocks) == 8
