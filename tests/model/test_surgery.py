from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from decoding import generated
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy
from prunebench.model.surgery import remove_layers
from tiny import FAMILIES, tiny_model

IDS = torch.arange(24)[None] * 7 % 300


@pytest.mark.parametrize("family", FAMILIES)
def test_the_remaining_model_runs_generates_saves_and_reloads(family, tmp_path):
    model = tiny_model(family)
    dense = model(IDS).logits
    remove_layers(model, [3, 0])
    logits = model(IDS).logits
    assert not torch.equal(logits, dense)
    with_cache = generated(model, IDS, 8, use_cache=True)
    assert torch.equal(with_cache, generated(model, IDS, 8, use_cache=False))
    assert with_cache.shape[1] == IDS.shape[1] + 8
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, logits)
    assert torch.equal(generated(again, IDS, 8, use_cache=True), with_cache)
    assert again.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4)
@given(removed=st.sets(st.integers(0, 3), max_size=3))
def test_removing_layers_equals_skipping_them(family, removed):
    model = tiny_model(family)
    bypassed = copy.deepcopy(model)
    for index in removed:
        anatomy(bypassed).layers[index].forward = lambda hidden, *_args, **_kwargs: hidden
    kept = [layer for index, layer in enumerate(anatomy(model).layers) if index not in removed]
    remove_layers(model, removed)
    parts = anatomy(model)
    assert [id(layer) for layer in parts.layers] == [id(layer) for layer in kept]
    assert model.config.num_hidden_layers == len(kept)
    indices = [
        module.layer_idx
        for layer in parts.layers
        for module in layer.modules()
        if hasattr(module, "layer_idx")
    ]
    assert indices == list(range(len(kept)))
    assert torch.equal(model(IDS).logits, bypassed(IDS).logits)


def test_per_layer_windows_stay_with_their_layers(tmp_path):
    model = tiny_model("qwen2", num_hidden_layers=5, max_window_layers=3)
    remove_layers(model, [1, 3])
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert model.config.max_window_layers == 2
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [layer.self_attn.sliding_window for layer in again.model.layers] == [None, None, 8]


def test_a_second_removal_counts_from_the_changed_model():
    model = tiny_model("llama")
    kept = model.model.layers[2]
    remove_layers(model, [0])
    remove_layers(model, [0, 2])
    assert [id(layer) for layer in model.model.layers] == [id(kept)]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([4], "no layer 4 to remove: the model has layers 0 to 3"),
        ([-1], "no layer -1"),
        ([1, 1], "named twice"),
        ([0, 1, 2, 3], "all 4 layers"),
    ],
)
def test_an_impossible_removal_is_refused_and_changes_nothing(indices, message):
    model = tiny_model("llama")
    before = model(IDS).logits
    with pytest.raises(PrunebenchError, match=message):
        remove_layers(model, indices)
    assert torch.equal(model(IDS).logits, before)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


def test_removing_nothing_changes_nothing():
    model = tiny_model("opt")
    before = model(IDS).logits
    remove_layers(model, [])
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(
    ("removed", "left"), [([], 2), ([0], 1), ([1], 1), ([2], 2), ([3], 2), ([0, 1], 0)]
)
def test_the_layers_before_the_first_window_are_counted_anew(removed, left):
    model = tiny_model("qwen2", max_window_layers=2)
    remove_layers(model, removed)
    assert model.config.max_window_layers == left
