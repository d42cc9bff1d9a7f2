"""Narrower matrices give the logits of the model in which the same groups are silenced."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.coupling.slices import width
from prunebench.model.coupling.sub_block import KINDS
from prunebench.model.width import keep_groups, keep_hidden
from tiny import FAMILIES, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


def silence_groups(model, block: Block, removed) -> None:
    """Groups whose columns in the last linear are zero add nothing to the residual."""
    parts = anatomy(model)
    layer = parts.layers[block.layer]
    cut = parts.cuts(layer, block.kind)[-1]
    linear = layer.get_submodule(cut.linear)
    size = width(linear, cut.dim) // parts.groups(layer, block.kind)
    for group in removed:
        linear.weight[:, group * size : (group + 1) * size] = 0


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5)
@given(data=st.data())
def test_removing_groups_equals_silencing_them(family, data):
    model = tiny_model(family)
    silenced = copy.deepcopy(model)
    parts = anatomy(model)
    for index in range(4):
        for kind in KINDS:
            present = parts.groups(parts.layers[index], kind)
            kept = sorted(data.draw(st.sets(st.integers(0, present - 1), min_size=1)))
            silence_groups(silenced, Block(index, kind), set(range(present)) - set(kept))
            keep_groups(model, {Block(index, kind): kept})
            assert parts.groups(parts.layers[index], kind) == len(kept)
    assert torch.allclose(model(IDS).logits, silenced(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_query_heads_are_removed_with_their_key_value_head(family):
    model = tiny_model(family)
    parts = anatomy(model)
    layer, dense = parts.layers[1], copy.deepcopy(parts.layers[1])
    present = parts.groups(layer, "attention")
    keep_groups(model, {Block(1, "attention"): [present - 1]})
    for cut in parts.cuts(layer, "attention"):
        before, after = (
            dense.get_submodule(cut.linear).weight,
            layer.get_submodule(cut.linear).weight,
        )
        last = before.shape[cut.dim] // present
        assert torch.equal(after, before.narrow(cut.dim, before.shape[cut.dim] - last, last))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma"])
@pytest.mark.parametrize("tied", [False, True])
def test_removed_residual_channels_are_removed_everywhere(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    kept = [channel for channel in range(48) if channel % 3]
    keep_hidden(model, kept)
    parts = anatomy(model)
    assert parts.embeddings.weight.shape == (320, 32)
    assert parts.head.weight.shape == (320, 32)
    assert (parts.head.weight is parts.embeddings.weight) == tied
    assert {
        p.shape[-1]
        for name, p in model.named_parameters()
        if "norm" in name and "q_norm" not in name and "k_norm" not in name
    } == {32}
    dense = tiny_model(family, tie_word_embeddings=tied)
    assert torch.equal(parts.embeddings.weight, anatomy(dense).embeddings.weight[:, kept])
    first = parts.inputs_of(parts.layers[0])[0][0]
    assert torch.equal(
        parts.layers[2].get_submodule(first).weight,
        anatomy(dense).layers[2].get_submodule(first).weight[:, kept],
    )
    assert bool(torch.isfinite(model(IDS).logits).all())


def test_a_channel_that_is_zero_everywhere_changes_nothing_but_the_norm():
    """A norm over fewer channels has another mean and variance; without norms nothing changes."""
    model = tiny_model("llama")
    parts = anatomy(model)
    dead = 7
    parts.embeddings.weight[:, dead] = 0
    for layer in parts.layers:
        for kind in KINDS:
            layer.get_submodule(parts.cuts(layer, kind)[-1].linear).weight[dead] = 0
    kept = [channel for channel in range(48) if channel != dead]
    narrow = copy.deepcopy(model)
    keep_hidden(narrow, kept)
    for module in model.modules():  # RMSNorm's mean over 48 channels instead of 47
        if type(module).__name__ == "LlamaRMSNorm":
            module.weight *= (47 / 48) ** 0.5
            module.variance_epsilon *= 47 / 48
    assert torch.allclose(model(IDS).logits, narrow(IDS).logits, atol=1e-5)


def test_the_config_has_the_widths_that_all_layers_share():
    model = tiny_model("llama")
    for index in range(4):
        keep_groups(model, {Block(index, "attention"): [1]})
        keep_groups(model, {Block(index, "mlp"): range(40)})
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 12)
    assert config.intermediate_size == 40
    different = tiny_model("llama")
    keep_groups(different, {Block(0, "mlp"): range(40)})
    keep_groups(different, {Block(0, "attention"): [1]})
    config = different.config
    assert config.intermediate_size == 80
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


def test_keeping_everything_touches_neither_weights_nor_config():
    """A config that says less than the weights must not be filled in on the way."""
    model = tiny_model("llama")
    model.config.head_dim = None
    before = dict(model.named_parameters())
    keep_groups(model, {Block(1, "attention"): [0, 1], Block(2, "mlp"): range(80)})
    assert all(each is before[name] for name, each in model.named_parameters())
    assert model.config.head_dim is None


def test_a_width_that_the_config_refuses_stays_as_it_was():
    """Llama's config requires that heads divide the hidden size; 5 heads do not divide 48."""
    model = tiny_model("llama", num_attention_heads=6, num_key_value_heads=6, head_dim=12)
    for index in range(4):
        keep_groups(model, {Block(index, "attention"): range(5)})
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (6, 6)
    assert model(IDS).logits.shape == (2, 12, 320)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "layer 1, KV groups: all 2 would be removed"),
        ([2], "no|not an ascending selection of 0 to 1"),
        ([1, 0], "not an ascending selection"),
        ([0, 0], "not an ascending selection"),
    ],
)
def test_an_impossible_selection_is_refused_and_changes_nothing(kept, message):
    model = tiny_model("llama")
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match=message):
        keep_groups(model, {Block(1, "attention"): kept})
    assert torch.equal(model(IDS).logits, before)


def test_models_with_scaled_or_projected_embeddings_keep_their_residual_channels():
    for model in (tiny_model("gemma"), tiny_model("opt", word_embed_proj_dim=24)):
        with pytest.raises(PrunebenchError, match="embeddings depend on their number"):
            keep_hidden(model, [0, 1])
