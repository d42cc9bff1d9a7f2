"""Of a mixture, the I/O floor counts the experts that a token reads."""

from __future__ import annotations

import pytest
import torch

from prunebench.measure.speed.breakdown import PARTS, _modules, breakdown
from prunebench.measure.speed.io import weight_bytes
from prunebench.measure.speed.kv_cache import kv_cache_bytes
from prunebench.model.anatomy import anatomy
from prunebench.model.experts import find_experts
from prunebench.testing.any_type import VOCABULARY, tiny_model


def test_a_token_reads_its_experts_and_all_that_is_shared() -> None:
    model = tiny_model("qwen2_moe", num_experts=8)
    expert = 4 * 3 * 64 * 32  # bytes of gate, up and down
    dense = sum(parameter.nbytes for parameter in model.parameters())
    dense -= model.get_input_embeddings().weight.nbytes - 4 * 64  # one row
    layers = len(find_experts(model))
    count = find_experts(model).popitem()[1].count
    assert weight_bytes(model) == dense - layers * (count - 2) * expert


def test_a_batch_reads_more_of_them_but_never_more_than_all() -> None:
    model = tiny_model("mixtral")  # 2 of 4
    expert = 4 * 3 * 64 * 96
    one, two, many = (weight_bytes(model, batch) for batch in (1, 2, 1000))
    assert two - one == 4 * (3 - 2) * expert + 4 * 64  # 4 * (1 - (1/2)^2) = 3; one row more
    assert many - one == 4 * (4 - 2) * expert + 4 * 64 * (VOCABULARY - 1)


def test_experts_that_are_modules_of_their_own_count_too() -> None:
    model = tiny_model("mixtral", num_hidden_layers=1)
    fused = weight_bytes(model)
    block = model.model.layers[0].mlp
    parameters = [tensor.clone() for tensor in block.experts.parameters()]
    del block.experts
    block.experts = torch.nn.ModuleList(torch.nn.Module() for _ in range(4))
    for tensor in parameters:
        for expert, part in zip(block.experts, tensor, strict=True):
            expert.register_parameter(
                f"w{len(list(expert.parameters()))}", torch.nn.Parameter(part)
            )
    assert weight_bytes(model) == fused


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "longcat_flash"])
def test_a_token_reads_less_than_all(family: str) -> None:
    model = tiny_model(family)
    assert weight_bytes(model) < weight_bytes(model, 10_000)


def test_the_breakdown_shows_router_and_experts_apart() -> None:
    model = tiny_model("qwen2_moe")
    parts = anatomy(model)
    inside = {id(each) for name, each in _modules(parts) if name == "router"}
    assert {id(layer.mlp.gate) for layer in parts.layers} == inside
    found = breakdown(model, torch.randint(3, 150, (1, 6)), 3, rounds=1)
    assert {part.part for part in found.parts} == {*PARTS, "router", "experts"}
    held = {part.part: part.token_bytes for part in found.parts}
    experts = find_experts(model).values()
    whole = sum(tensor.nbytes for each in experts for tensor in each.module.parameters())
    [count] = {each.count for each in experts}
    assert held["experts"] == whole * 2 / count
    assert held["mlp"] > 0  # shared experts
    assert held["router"] == sum(layer.mlp.gate.weight.nbytes for layer in parts.layers)


def test_pieces_of_a_mixture_are_not_inside_each_other() -> None:
    parts = anatomy(tiny_model("qwen2_moe"))
    modules = [module for _, module in _modules(parts)]
    inner = [id(each) for module in modules for each in list(module.modules())[1:]]
    assert not {id(module) for module in modules} & set(inner)


def test_states_of_hybrids_are_read_and_a_vision_tower_is_not() -> None:
    model = tiny_model("jamba")  # state spaces, and from layer 1 on every second an attention
    states, keys = kv_cache_bytes(model, 1, 2), kv_cache_bytes(model, 11, 2)
    attentions = sum(hasattr(layer, "self_attn") for layer in model.model.layers)
    assert keys - states == 10 * attentions * 2 * 4 * 32  # 2 heads of 16 channels, float32
    assert states > 2 * attentions * 2 * 4 * 32
    seeing = tiny_model("gemma3")
    text = sum(each.nbytes for each in seeing.model.language_model.parameters())
    assert seeing.lm_head.weight is seeing.model.language_model.embed_tokens.weight
    assert weight_bytes(seeing) == text


def test_a_layer_with_two_mlps_side_by_side_is_split_by_their_names() -> None:
    held = {
        part.part: part.token_bytes
        for part in breakdown(
            tiny_model("granitemoehybrid"), torch.zeros(1, 4, dtype=torch.long), 2, rounds=1
        ).parts
    }
    assert held["mlp"] > 0 and held["experts"] > held["router"] > 0
    assert held["rest"] == 4 * 64  # a row of the embeddings
