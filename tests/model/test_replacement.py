"""Layers that are put back or replaced: the same logits, a working cache, a loadable checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from prunebench import Block, Context, PrunebenchError, anatomy, load_pruned
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed.breakdown import breakdown
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.model.checkpoint import save
from prunebench.model.decilm import save_decilm
from prunebench.model.dense_source import CheckpointSource
from prunebench.model.pruning_json import read_pruning_file
from prunebench.model.replacement import ReplacementLayer
from prunebench.model.surgery import configs
from prunebench.model.width import keep_hidden
from tiny import tiny_checkpoint, tiny_model

IDS = torch.arange(1, 30)[None]
SOME = ("llama", "qwen2", "opt", "gpt_neox")
"""A config with a kind per layer (Qwen2), biases, parallel blocks; tests/plugins has all families."""
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def context_of(folder: Path, layers: int = 4) -> Context:
    return Context(IDS, 0, list(range(layers)), dense_source=CheckpointSource(folder, "float32"))


def cut(family: str, removed: list[int], folder: Path) -> tuple[Any, Context]:
    """A model without these layers, and its context."""
    tiny_checkpoint(folder, family)
    model, context = tiny_model(family), context_of(folder)
    context.remove_layers(model, removed)
    return model, context


@pytest.mark.parametrize("family", SOME)
def test_removed_layers_are_read_again_and_leave_no_trace(family, tmp_path):
    removed = [1, 2]
    model, context = cut(family, removed, tmp_path)
    logits, config = model(IDS).logits, copy.deepcopy(model.config.to_dict())
    assert context.removed_layers == removed
    with context.restored_layers(model):
        assert torch.equal(model(IDS).logits, tiny_model(family)(IDS).logits)
    assert torch.equal(model(IDS).logits, logits)
    assert model.config.to_dict() == config
    with pytest.raises(RuntimeError, match="inside"), context.restored_layers(model):
        raise RuntimeError("inside")
    assert torch.equal(model(IDS).logits, logits)


def test_only_the_removed_layers_are_read(tmp_path):
    model, context = cut("llama", [1, 2], tmp_path)
    own = [id(layer) for layer in anatomy(model).layers]
    with context.restored_layers(model):
        whole = anatomy(model).layers
        assert [id(whole[0]), id(whole[3])] == own
        assert not any(each.is_meta for each in model.parameters())
    assert [id(layer) for layer in anatomy(model).layers] == own


@pytest.mark.parametrize(
    ("family", "removed"),
    [*((each, [2, 3]) for each in SOME), ("qwen2", [0, 1])],
)
def test_a_layer_in_the_place_of_removed_ones_is_the_first_of_them(family, removed, tmp_path):
    model, context = cut(family, removed, tmp_path)
    context.replace_layers(model, range(removed[0], removed[1] + 1))
    expected = tiny_model(family)
    Context(IDS, 0, list(range(4))).remove_layers(expected, removed[1:])
    assert context.removed_layers == removed[1:]
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert model.config.to_dict() == expected.config.to_dict()
    assert len(configs(model)) == len(configs(expected)) == 1
    # It may learn, so that it is no dense layer any more.
    anatomy(model).layers[context.kept_layers.index(removed[0])].requires_grad_(requires_grad=True)
    with torch.no_grad():
        for each in anatomy(model).layers[context.kept_layers.index(removed[0])].parameters():
            each.mul_(2)
    with context.restored_layers(model):
        assert torch.equal(model(IDS).logits, tiny_model(family)(IDS).logits)


@pytest.mark.parametrize(
    ("family", "network"), [*((each, "mlp") for each in SOME), ("llama", "swiglu")]
)
def test_a_network_generates_with_a_cache_and_is_loaded_again(family, network, tmp_path):
    model, context = cut(family, [1], tmp_path / "dense")
    layer = context.replace_layers(model, range(2), network, 20)  # layer 0 holds the cache's length
    assert isinstance(layer, ReplacementLayer)
    assert anatomy(model).layers[0] is layer
    assert context.kept_layers == [0, 2, 3]
    states = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    given = dict(layer.network.named_parameters())
    if network == "mlp":
        hidden = (states @ given["fc1.weight"].T + given["fc1.bias"]).relu()
        wanted = hidden @ given["fc2.weight"].T + given["fc2.bias"]
    else:
        gate = torch.nn.functional.silu(states @ given["gate.weight"].T)
        wanted = (gate * (states @ given["up.weight"].T)) @ given["down.weight"].T
    torch.testing.assert_close(layer(states), wanted)
    cached = model.generate(IDS, use_cache=True, **GREEDY)
    assert torch.equal(cached, model.generate(IDS, use_cache=False, **GREEDY))
    facts = dense_facts(tiny_model(family))
    found = audit(model, facts, context.dense_indices)
    assert found.removed_blocks == ["0.attention", "0.mlp"]
    assert found.kept.attention[0].startswith("none of ")
    assert {each.layer for each in found.linears} == {2, 3}
    save(model, None, tmp_path / "pruned", made_by={})
    again = load_pruned(tmp_path / "pruned")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.equal(again.generate(IDS, use_cache=True, **GREEDY), cached)
    shape = read_pruning_file(tmp_path / "pruned").shape.layers
    assert [each.replacement and each.replacement.network for each in shape] == [
        network,
        None,
        None,
    ]


def replaced(tmp_path: Path) -> tuple[Any, Context]:
    model, context = cut("llama", [1], tmp_path)
    context.replace_layers(model, range(1, 3), "swiglu", 20)
    return model, context


def test_a_network_is_drawn_by_the_seed_and_in_the_type_of_the_model(tmp_path):
    state = torch.random.get_rng_state()
    (one, _), (other, _) = replaced(tmp_path / "1"), replaced(tmp_path / "2")
    assert torch.equal(one(IDS).logits, other(IDS).logits)
    assert torch.equal(torch.random.get_rng_state(), state)
    half = tiny_model("llama").to(torch.bfloat16)
    context = context_of(tmp_path / "1")
    context.replace_layers(half, range(1, 3), "mlp", 20)
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16}
    assert not any(each.requires_grad for each in half.parameters())


def test_a_network_is_timed_in_every_form(tmp_path):
    model, _ = replaced(tmp_path)
    lean = Lean(model, 1, 12)
    tokens = [lean.prompt(IDS[:, :6])]
    for _ in range(4):
        tokens.append(lean.step(tokens[-1]))
    wanted = model.generate(IDS[:, :6], **{**GREEDY, "max_new_tokens": 5})[:, 6:]
    assert torch.equal(torch.cat(tokens, 1), wanted)
    network = anatomy(model).layers[1].network
    own = sum(each.numel() * each.element_size() for each in network.parameters())
    linears = sum(
        each.numel() * each.element_size()
        for layer in anatomy(model).layers
        for name, each in layer.named_parameters()
        if name.startswith("mlp.")
    )
    parts = {each.part: each for each in breakdown(model, IDS[:, :6], 3, rounds=1).parts}
    assert parts["mlp"].token_bytes == own + linears


def test_what_cannot_be_done_with_a_network_is_refused(tmp_path):
    model, context = replaced(tmp_path)
    with pytest.raises(PrunebenchError, match="a trained network is in the place of layer 1"):
        keep_hidden(model, range(40))
    with pytest.raises(PrunebenchError, match="which the DeciLM format cannot describe"):
        save_decilm(model, None, tmp_path / "decilm")
    context.remove_blocks(model, [Block(0, "attention"), Block(0, "mlp")])
    assert context.kept_layers == [1, 3]  # the empty layer is gone, the network is not
    assert isinstance(anatomy(model).layers[0], ReplacementLayer)
    run = Context(IDS, 0, [0, 1]).partial_forward(model)
    [states] = run.start()
    assert not torch.equal(run.run(0, 0, states), states)


def test_without_a_checkpoint_nothing_can_be_read_again():
    model, context = tiny_model("llama"), Context(IDS, 0, list(range(4)))
    context.remove_layers(model, [1])
    with pytest.raises(PrunebenchError, match="the model came without its checkpoint") as caught:
        context.replace_layers(model, range(1, 3))
    assert "name or folder" in caught.value.hint
    assert context.kept_layers == [0, 2, 3]
