from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.coupling.sub_block import KINDS
from tiny import FAMILIES, tiny_model

IDS = torch.arange(12)[None] * 5 % 300


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_in_the_layers_is_named_once(family):
    model = tiny_model(family)
    parts = anatomy(model)
    found = {id(linear) for layer in parts.layers for linear in parts.linears(layer).values()}
    head = model.get_output_embeddings()
    assert found == {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    names = list(parts.linears(parts.layers[0]))
    assert names == [name for group in parts.inputs_of(parts.layers[0]) for name in group]
    assert model.get_submodule(parts.layers_path) is parts.layers
    assert len(parts.layers) == 4
    cut = [each.linear for kind in KINDS for each in parts.cuts(parts.layers[0], kind)]
    assert sorted(cut) == sorted(names), "every linear belongs to the attention or to the MLP"
    assert parts.blocks == [Block(index, kind) for index in range(4) for kind in KINDS]


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_of_a_group_read_the_same_input_and_others_do_not(family):
    model = tiny_model(family)
    parts = anatomy(model)
    seen: dict[str, torch.Tensor] = {}
    order: list[str] = []

    def note(name):
        def hook(_module, inputs):
            seen[name] = inputs[0].reshape(-1, inputs[0].shape[-1])
            order.append(name)

        return hook

    for name, linear in parts.linears(parts.layers[1]).items():
        linear.register_forward_pre_hook(note(name))
    model(IDS)
    groups = parts.inputs_of(parts.layers[1])
    for group in groups:
        for name in group:
            assert torch.equal(seen[name], seen[group[0]])
    firsts = [seen[group[0]] for group in groups]
    for index, first in enumerate(firsts):
        assert not any(
            first.shape == other.shape and torch.equal(first, other) for other in firsts[:index]
        )
    assert sorted(order) == sorted(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_and_head_make_the_logits(family):
    model = tiny_model(family)
    parts = anatomy(model)
    states: list[torch.Tensor] = []
    parts.final_norm.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    hidden = parts.decoder(IDS).last_hidden_state
    assert torch.equal(states[0], hidden)
    assert torch.equal(parts.head(hidden), model(IDS).logits)
    assert parts.embeddings(IDS).shape == (1, 12, 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_the_heads_and_channels_of_the_config(family):
    model = tiny_model(family)
    parts = anatomy(model)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert parts.groups(parts.layers[0], "attention") == heads
    assert parts.groups(parts.layers[0], "mlp") == 80
    assert parts.head_dim(parts.layers[0]) == (getattr(config, "head_dim", None) or 12)


def test_shapes_that_do_not_divide_into_heads_are_named():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.k_proj = nn.Linear(48, 25)
    with pytest.raises(
        PrunebenchError, match=r"25 rows of self_attn\.k_proj do not divide into 2 KV groups"
    ):
        anatomy(model).groups(model.model.layers[0], "attention")


def test_a_post_norm_model_has_no_final_norm():
    model = tiny_model("opt", do_layer_norm_before=False)
    assert anatomy(model).final_norm is None


def test_adapters_and_quantised_linears_are_named():
    from peft import LoraConfig, LoraModel

    model = tiny_model("llama")
    LoraModel(model, LoraConfig(target_modules=["o_proj"]), adapter_name="default")
    with pytest.raises(PrunebenchError, match=r"layer 0, self_attn\.o_proj: this is an adapter"):
        anatomy(model)
    model = tiny_model("llama")
    packed = model.model.layers[2].mlp.up_proj
    packed.weight = nn.Parameter(packed.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(PrunebenchError, match=r"layer 2, mlp\.up_proj: this linear is quantised"):
        anatomy(model)


def test_weights_that_two_layers_share_are_named():
    model = tiny_model("llama")
    model.model.layers[3].mlp = model.model.layers[1].mlp
    with pytest.raises(PrunebenchError, match=r"layer 3, mlp.*: layer 1 has the same weights"):
        anatomy(model)


def test_a_linear_that_no_text_goes_through_is_not_pruned():
    model = tiny_model("llama")
    model.model.layers[2].mlp.extra = nn.Linear(2, 2)
    parts = anatomy(model)
    assert [len(parts.linears(layer)) for layer in parts.layers] == [7, 7, 7, 7]


def test_finding_the_parts_of_a_model_changes_nothing_of_it():
    model = tiny_model("qwen3")
    seen = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = anatomy(model)
    assert parts.linears(parts.layers[0])
    assert not seen, "hooks of the user do not run"
    assert len(model.model.layers[0]._forward_hooks) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
