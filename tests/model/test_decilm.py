"""The DeciLM format: a reader that follows SGLang's rules gives the logits of the pruned model."""

from __future__ import annotations

import json

import pytest
import torch

from decilm_reader import SGLangReader, llama_cpp_shapes
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.decilm import ffn_width, save_decilm
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from tiny import tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


def cut_model():
    model = tiny_model("llama", intermediate_size=600, rope_parameters=ROPE)
    remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    keep_groups(model, {Block(3, "mlp"): range(40)})
    return model


def saved(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return save_decilm(model, None, tmp_path / "kept"), tmp_path / "kept"


def test_a_reader_by_sglangs_rules_gives_the_logits_of_the_pruned_model(tmp_path, monkeypatch):
    model = cut_model()
    expected = model(IDS).logits
    notes, folder = saved(model, tmp_path, monkeypatch)
    assert torch.equal(model(IDS).logits, expected), "the model itself stays as it was"
    assert model.model.layers[3].mlp.gate_proj.weight.shape == (40, 48)
    torch.testing.assert_close(SGLangReader(folder).logits(IDS), expected, rtol=0, atol=2e-6)
    # 600 channels are written as 768, a removed MLP as 256 of zeros: llama.cpp would drop the
    # attention of the layer otherwise.
    assert llama_cpp_shapes(folder) == [(4, 2, 768), (0, 0, 768), (4, 2, 256), (4, 2, 256)]
    assert notes[:3] == (
        "as saved, 2.mlp came back as zeros",
        "as saved, MLP of layer 3 padded with zeros to 256 channels",
        "as saved, MLP of layers 0-1 padded with zeros to 768 channels",
    )
    config = json.loads((folder / "config.json").read_text())
    # Also where readers look that do not know `rope_parameters`.
    assert (config["rope_theta"], config["rope_scaling"]) == (
        500.0,
        {"rope_type": "linear", "factor": 2.0},
    )
    zeros = (2 * 168 + 256 + 216) * 3 * 48 + 48
    assert notes[3] == f"zeros are {zeros:,} parameters of the saved model"


def test_different_numbers_of_heads_a_first_layer_without_attention_and_an_empty_layer(
    tmp_path, monkeypatch
):
    model = cut_model()
    keep_groups(model, {Block(3, "attention"): [1]})
    remove_blocks(model, [Block(0, "attention"), Block(2, "attention")])
    expected = model(IDS).logits
    _, folder = saved(model, tmp_path, monkeypatch)
    torch.testing.assert_close(SGLangReader(folder).logits(IDS), expected, rtol=0, atol=2e-6)
    # Three layers: one had nothing left. All attentions that are left have one KV group.
    assert llama_cpp_shapes(folder) == [(2, 1, 768), (0, 0, 768), (2, 1, 256)]


@pytest.mark.parametrize("hidden", [48, 576, 768, 2048, 4096, 5120, 8192])
def test_every_multiple_of_256_survives_the_factor(hidden):
    for width in range(256, 40 * 256, 256):
        assert ffn_width(1.5 * width / hidden, hidden) == width
    assert ffn_width(1.5 * 1152 / hidden, hidden) == 1280, "the factor cannot say 1152"


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda: tiny_model("qwen2"), "a qwen2 model cannot be written"),
        (lambda: tiny_model("llama"), "all layers of this model have the same shape"),
    ],
)
def test_a_model_that_needs_no_decilm_format_is_refused(cut, message, tmp_path):
    with pytest.raises(PrunebenchError, match=message):
        save_decilm(cut(), None, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_model_without_any_attention_is_refused(tmp_path):
    model = cut_model()
    remove_blocks(model, [block for block in anatomy(model).blocks if block.kind == "attention"])
    with pytest.raises(PrunebenchError, match="no layer has its attention any more"):
        save_decilm(model, None, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
