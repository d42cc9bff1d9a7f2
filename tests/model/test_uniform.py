"""Layers made alike with zeros: the same logits, and a folder that any loader can read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunebench.errors import PrunebenchError
from prunebench.model.adapter import Adapter
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.biases import add_biases
from prunebench.model.checkpoint import save
from prunebench.model.indexed import index_residual
from prunebench.model.pruning_json import is_plain
from prunebench.model.replacement import Replacement, replace_layer
from prunebench.model.rotated import rotate
from prunebench.model.surgery import remove_blocks
from prunebench.model.uniform import uniform
from prunebench.model.width import keep_groups
from tiny import FAMILIES, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300


def cut(model):
    """Scattered groups, so that a pad that puts them elsewhere is found; two blocks are gone."""
    remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    keep_groups(
        model,
        {
            Block(0, "mlp"): range(7, 80, 2),
            Block(3, "mlp"): range(41),
            Block(3, "attention"): [1],
        },
    )
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_padded_model_computes_the_same_and_loads_everywhere(family, tmp_path):
    model = cut(tiny_model(family))
    expected, shapes = model(IDS).logits, {n: w.shape for n, w in model.state_dict().items()}
    padded = uniform(model)
    assert {n: w.shape for n, w in model.state_dict().items()} == shapes, "the model stays"
    assert torch.equal(model(IDS).logits, expected)
    assert is_plain(padded.model) and not is_plain(model)
    save(padded.model, None, tmp_path / "kept")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "kept", output_loading_info=True
    )
    assert not any(report.values()), report
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=2e-6)
    assert padded.notes[0] == "as saved, 1.attention, 2.mlp came back as zeros"
    added = sum(w.numel() for w in loaded.parameters()) - sum(w.numel() for w in model.parameters())
    assert padded.notes[-1] == f"zeros are {added:,} parameters of the saved model"


def test_only_the_widest_is_padded_to_not_the_dense_width():
    model = tiny_model("llama")
    keep_groups(model, {Block(index, "mlp"): range(20 + 5 * index) for index in range(4)})
    padded = uniform(model)
    assert padded.model.config.intermediate_size == 35
    assert padded.notes[0] == "as saved, MLP of layers 0-2 padded with zeros to 35 channels"
    # What needs no zeros is the same memory, not a second copy of the model.
    assert (
        padded.model.model.layers[3].mlp.up_proj.weight is model.model.layers[3].mlp.up_proj.weight
    )


def test_a_layer_that_lost_everything_goes_and_an_even_model_stays_as_it_is():
    model = tiny_model("qwen2")
    expected = model(IDS).logits
    assert uniform(model).notes == ()
    remove_blocks(model, [Block(1, "attention"), Block(1, "mlp")])
    padded = uniform(model)
    assert padded.model.config.num_hidden_layers == len(padded.model.config.layer_types) == 3
    torch.testing.assert_close(padded.model(IDS).logits, model(IDS).logits)
    assert not torch.allclose(model(IDS).logits, expected)
    assert padded.notes == ()


def test_numbers_of_heads_that_the_config_refuses_are_padded_further():
    """Three of four heads do not divide 64 channels, so they become four again."""
    model = tiny_model("llama", hidden_size=64, num_key_value_heads=4)
    keep_groups(
        model, {Block(index, "attention"): [0, 2, 3][: 3 - index % 2] for index in range(4)}
    )
    expected = model(IDS).logits
    padded = uniform(model)
    assert padded.model.config.num_attention_heads == 4
    torch.testing.assert_close(padded.model(IDS).logits, expected, rtol=0, atol=2e-6)


def test_biases_of_flap_become_those_of_the_config_of_a_llama(tmp_path):
    model = tiny_model("llama")
    add_biases(
        model,
        {
            "model.layers.1.self_attn.o_proj": torch.linspace(-1, 1, 48),
            "model.layers.2.mlp.down_proj": torch.linspace(1, 2, 48),
        },
    )
    keep_groups(model, {Block(2, "mlp"): range(5, 30)})
    expected = model(IDS).logits
    padded = uniform(model)
    save(padded.model, None, tmp_path / "kept")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    assert loaded.config.attention_bias and loaded.config.mlp_bias
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=2e-6)
    assert not model.config.attention_bias
    qwen = tiny_model("qwen2")
    add_biases(qwen, {"model.layers.2.mlp.down_proj": torch.ones(48)})
    with pytest.raises(PrunebenchError, match="config of a qwen2 model has none there"):
        uniform(qwen)


def test_what_zeros_cannot_mend_is_refused():
    model = tiny_model("llama")
    remove_blocks(model, [block for block in anatomy(model).blocks if block.kind == "mlp"])
    # All layers alike, and yet no config has layers without MLPs.
    with pytest.raises(PrunebenchError, match="cannot describe it"):
        uniform(model)


def test_a_network_in_a_layers_place_a_turned_stream_and_an_adapter_are_refused():
    replaced = tiny_model("llama")
    replace_layer(anatomy(replaced), 1, Replacement(network="mlp", width=8))
    with pytest.raises(PrunebenchError, match="trained network is in the place of layer 1"):
        uniform(replaced)
    turned = tiny_model("llama")
    rotate(turned.model.layers[0], (48, 48, 40))
    with pytest.raises(PrunebenchError, match="residual stream of this model is rotated"):
        uniform(turned)
    own = tiny_model("llama")
    index_residual(own, {Block(0, "mlp"): range(40)}, {Block(0, "mlp"): range(40)})
    with pytest.raises(PrunebenchError, match="channels of the residual stream of their own"):
        uniform(own)
    model = cut(tiny_model("llama"))
    updates = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 48), torch.ones(48, 2))}
    Adapter(updates, alpha=2.0).attach(model)
    with pytest.raises(PrunebenchError, match="has an adapter beside its linears"):
        uniform(model)
