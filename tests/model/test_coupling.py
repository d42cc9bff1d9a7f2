"""What belongs together in a layer is proposed by rules, and kept if a small model proves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.checkpoint import save
from prunebench.model.coupling import find
from prunebench.model.coupling.shrink import small_configs
from prunebench.model.coupling.sub_block import KINDS
from prunebench.model.load import load_pruned
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups, keep_hidden
from tiny import FAMILIES, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 60
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

LLAMA = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), LLAMA),
    "opt": {"attention": ("q_proj", "k_proj", "v_proj", "out_proj"), "mlp": ("fc1", "fc2")},
    "phi": {"attention": ("q_proj", "k_proj", "v_proj", "dense"), "mlp": ("fc1", "fc2")},
    "gpt_neox": {
        "attention": ("query_key_value", "dense"),
        "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
    },
}
IN_CONFIG = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi"), ("intermediate_size", True, True)
    ),
    "gemma": ("intermediate_size", True, False),
    "opt": ("ffn_dim", False, False),
    "gpt_neox": ("intermediate_size", False, False),
}
"""The field of channels, and whether heads and the residual's width can be in the config."""


def random_model(model_type: str, **fields: Any) -> Any:
    config = CONFIG_MAPPING[model_type](**{**SMALL, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.requires_grad = False
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.08)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_first_families_had_in_a_table_is_found(family: str) -> None:
    parts = anatomy(tiny_model(family))
    for layer in parts.layers:
        for kind in KINDS:
            cuts = parts.cuts(layer, kind)
            assert tuple(cut.linear.split(".")[-1] for cut in cuts) == NAMES[family][kind]
            assert [cut.dim for cut in cuts] == [0] * (len(cuts) - 1) + [1]
    found = parts.coupling
    assert (found.channels_field, found.heads_in_config, found.hidden_in_config) == IN_CONFIG[
        family
    ]
    assert parts.parallel == (family in {"phi", "gpt_neox"})


FUSED = {
    # Queries, keys and values one after the other; gate and up as halves
    "phi3": ({}, {"qkv_proj": 3, "gate_up_proj": 2}),
    # A Conv1D, stored as [in, out], with three parts
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 4}, {"c_attn": 3}),
    # Two query heads, a key and a value for each group
    "falcon": (
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_attention_heads": 4,
            "ffn_hidden_size": 40,
        },
        {"query_key_value": 1},
    ),
    "gpt_oss": ({"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, {"q_proj": 1}),
}


@pytest.mark.parametrize("family", FUSED)
def test_groups_of_fused_linears_are_removed_in_their_order(family: str) -> None:
    fields, expected = FUSED[family]
    model = random_model(family, **fields)
    parts = anatomy(model)
    layer = parts.layers[1]
    kinds = [kind for kind in KINDS if parts.can_cut(layer, kind)]
    assert {
        cut.linear.split(".")[-1]: cut.parts for kind in kinds for cut in parts.cuts(layer, kind)
    }.items() >= expected.items()
    for kind in kinds:
        groups = parts.groups(layer, kind)
        weight = parts.linears(layer)[parts.cuts(layer, kind)[-1].linear].weight
        weight.data.unflatten(1, (groups, -1))[:, ::2] = 0
    wanted = model(IDS).logits
    for kind in kinds:
        groups = parts.groups(layer, kind)
        keep_groups(model, {Block(1, kind): range(1, groups, 2)})
        assert parts.groups(layer, kind) == groups // 2
    torch.testing.assert_close(model(IDS).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_of_another_shape_than_the_small_one_is_cut_by_its_own_heads() -> None:
    """The proof runs with two query heads for each key head; this model has four, and is larger."""
    model = random_model(
        "phi3",
        hidden_size=128,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=40000,
        intermediate_size=96,
    )
    (small,) = list(small_configs(model.config, 10**7))[:1]
    assert (small.num_attention_heads, small.num_key_value_heads, small.vocab_size) == (4, 2, 160)
    parts = anatomy(model)
    layer = parts.layers[0]
    assert (parts.groups(layer, "attention"), parts.head_dim(layer)) == (4, 8)
    layer.self_attn.o_proj.weight.data.unflatten(1, (4, -1))[:, [0, 2]] = 0
    wanted = model(IDS).logits
    keep_groups(model, {Block(0, "attention"): [1, 3]})
    torch.testing.assert_close(model(IDS).logits, wanted, atol=1e-5, rtol=1e-5)


def test_experts_are_removed_as_a_whole_only() -> None:
    model = random_model("mixtral", num_local_experts=4)
    parts = anatomy(model)
    assert parts.groups(parts.layers[0], "mlp") == 1
    with pytest.raises(PrunebenchError, match="mlp holds experts, whose channels cannot be"):
        parts.cuts(parts.layers[0], "mlp")
    remove_blocks(model, [Block(0, "mlp")])
    assert parts.groups(parts.layers[0], "mlp") == 0
    assert bool(torch.isfinite(model(IDS).logits).all())


def test_a_norm_over_all_heads_keeps_them() -> None:
    """OLMo 2 divides queries and keys by the root mean square over all heads."""
    model = random_model("olmo2")
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match=r"KV groups of self_attn cannot be removed"):
        anatomy(model).cuts(model.model.layers[0], "attention")
    # Its norms come after the sub-blocks, and go with them.
    remove_blocks(model, [Block(0, "attention")])
    assert isinstance(model.model.layers[0].post_attention_layernorm, torch.nn.Identity)
    assert not torch.equal(model(IDS).logits, before)


class Twisted(torch.nn.Module):
    """An MLP whose channels depend on their neighbours, so that none can be removed alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(64, 40)
        self.down_proj = torch.nn.Linear(40, 64)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(states).softmax(-1))


class TwistedLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Twisted()


def test_without_a_proof_nothing_is_cut() -> None:
    model = TwistedLlama(LlamaConfig(**SMALL)).eval().requires_grad_(requires_grad=False)
    parts = anatomy(model)
    with pytest.raises(
        PrunebenchError,
        match=r"channels of mlp cannot be removed: sliced and masked outputs differ by 0\.\d",
    ):
        parts.cuts(parts.layers[0], "mlp")
    with pytest.raises(PrunebenchError, match="not an ascending selection"):
        keep_groups(model, {Block(0, "mlp"): range(7)})
    assert parts.can_cut(parts.layers[0], "attention")


def test_residual_channels_that_scale_the_embeddings_stay() -> None:
    model = random_model("gemma2", head_dim=16)
    with pytest.raises(PrunebenchError, match="embeddings depend on their number"):
        keep_hidden(model, range(40))


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("olmo2", {}),  # a head's size is not in the config unless it is written there
        ("gpt_bigcode", {"n_embd": 64, "n_layer": 2, "n_head": 4}),  # one KV group
    ],
)
def test_fewer_residual_channels_are_loaded_again(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(family, **fields)
    keep_hidden(model, [channel for channel in range(64) if channel % 4])
    save(model, None, tmp_path / "kept", made_by={})
    assert torch.equal(load_pruned(tmp_path / "kept")(IDS).logits, model(IDS).logits)


def test_a_proof_is_kept_in_memory_and_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(find, "_known", {})
    monkeypatch.setattr(find, "_memory", {})
    config = LlamaConfig(**SMALL)
    before = torch.random.get_rng_state()
    proved = find.coupling_of(LlamaForCausalLM, config)
    assert torch.equal(torch.random.get_rng_state(), before)  # a run draws the same without a proof
    monkeypatch.setattr(find, "_proved", None)  # any further proof would fail
    assert find.coupling_of(LlamaForCausalLM, config) is proved
    find._known.clear()
    find._memory.clear()
    assert find.coupling_of(LlamaForCausalLM, config) == proved
    monkeypatch.setattr(find, "_rules", lambda: "others")
    find._known.clear()
    find._memory.clear()
    with pytest.raises(TypeError):
        find.coupling_of(LlamaForCausalLM, config)
