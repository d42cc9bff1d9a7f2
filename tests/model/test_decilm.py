"""The DeciLM format: every tensor has the shape that its layer's config entry gives."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block
from prunebench.model.decilm import save_decilm
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from tiny import tiny_model


def cut_model():
    model = tiny_model("llama")
    remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    keep_groups(model, {Block(3, "mlp"): range(40)})
    return model


def test_each_layer_has_the_tensors_of_its_config_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = cut_model()
    save_decilm(model, None, tmp_path / "kept")
    config = AutoConfig.from_pretrained(tmp_path / "kept", trust_remote_code=True)
    assert (config.model_type, config.architectures) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert len(config.block_configs) == config.num_hidden_layers == 4
    expected = {"model.embed_tokens.weight": [320, 48], "model.norm.weight": [48]}
    for index, block in enumerate(config.block_configs):
        here = f"model.layers.{index}"
        assert not hasattr(block.ffn, "ffn_mult"), (
            "vLLM would round the width up to a multiple of 256"
        )
        if not block.attention.no_op:
            values = (
                config.num_attention_heads // block.attention.n_heads_in_group * config.head_dim
            )
            queries = config.num_attention_heads * config.head_dim
            expected |= {
                f"{here}.self_attn.q_proj.weight": [queries, 48],
                f"{here}.self_attn.k_proj.weight": [values, 48],
                f"{here}.self_attn.v_proj.weight": [values, 48],
                f"{here}.self_attn.o_proj.weight": [48, queries],
                f"{here}.input_layernorm.weight": [48],
            }
        if not block.ffn.no_op:
            width = block.ffn.intermediate_size
            expected |= {
                f"{here}.mlp.gate_proj.weight": [width, 48],
                f"{here}.mlp.up_proj.weight": [width, 48],
                f"{here}.mlp.down_proj.weight": [48, width],
                f"{here}.post_attention_layernorm.weight": [48],
            }
    with safe_open(tmp_path / "kept" / "model.safetensors", "pt") as file:
        stored = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert torch.equal(
            file.get_tensor("model.layers.3.mlp.up_proj.weight"),
            model.model.layers[3].mlp.up_proj.weight,
        )
    assert stored == expected


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


def test_a_model_that_the_format_cannot_describe_is_refused(tmp_path):
    heads = cut_model()
    keep_groups(heads, {Block(0, "attention"): [1]})
    with pytest.raises(PrunebenchError, match="layer 0 has 2 query heads and the model 4"):
        save_decilm(heads, None, tmp_path / "kept")
    first = cut_model()
    remove_blocks(first, [Block(0, "attention")])
    with pytest.raises(PrunebenchError, match="cannot begin with a layer without attention"):
        save_decilm(first, None, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
