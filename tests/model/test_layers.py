"""Layers, and linears that share an input, are found by looking; the old table is what they were."""

from __future__ import annotations

import pytest
from torch import nn

from prunebench import anatomy
from prunebench.errors import PrunebenchError
from prunebench.model.layers import find_layers
from tiny import tiny_model

LLAMA = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
TABLE = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma"), ("model.layers", "model.norm", LLAMA)
    ),
    "opt": (
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        (
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
    ),
    "phi": (
        "model.layers",
        "model.final_layernorm",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
            ("self_attn.dense",),
            ("mlp.fc2",),
        ),
    ),
}
"""(layers, norm, groups of a layer) as the table of families said before version 0.2.

Masks depend on the order: these must stay as they are, or old results cannot be repeated.
"""


@pytest.mark.parametrize("family", TABLE)
def test_the_first_eight_families_are_what_the_table_said(family):
    parts = anatomy(tiny_model(family))
    layers, norm, groups = TABLE[family]
    assert (parts.where.layers, parts.where.norm) == (layers, norm)
    assert [parts.inputs_of(layer) for layer in parts.layers] == [groups] * 4


def test_a_model_with_several_stacks_is_refused_by_their_names():
    model = tiny_model("llama")
    model.model.more = nn.ModuleList(list(tiny_model("llama").model.layers))
    with pytest.raises(
        PrunebenchError, match=r"LlamaForCausalLM has several lists .*model\.layers, model\.more"
    ):
        find_layers(model)


def test_a_model_without_a_list_of_layers_is_refused():
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(PrunebenchError, match="LlamaForCausalLM has no list of 4 decoder layers"):
        find_layers(model)


def test_layers_are_found_by_their_number_if_their_class_is_not_known():
    model = tiny_model("opt")
    model._no_split_modules = None
    assert find_layers(model).layers == "model.decoder.layers"
