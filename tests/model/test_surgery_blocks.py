"""Attentions and MLPs that are gone: the residual path stays, the KV cache still counts, a neighbour is not touched."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.families import KINDS
from prunebench.model.surgery import remove_blocks, without
from tiny import FAMILIES, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300
BLOCKS = [Block(layer, kind) for layer in range(4) for kind in KINDS]


def generate(model, *, use_cache: bool) -> torch.Tensor:
    return model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        use_cache=use_cache,
    )


def silence(model, block: Block) -> None:
    """The same without surgery: what writes to the residual writes zeros."""
    parts = anatomy(model)
    out = parts.layers[block.layer].get_submodule(parts.cuts(block.kind)[-1].linear)
    out.weight.zero_()
    if out.bias is not None:
        out.bias.zero_()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5)
@given(gone=st.sets(st.sampled_from(BLOCKS), min_size=1))
def test_removed_equals_silenced(family, gone):
    model = tiny_model(family)
    silenced = copy.deepcopy(model)
    for block in gone:
        silence(silenced, block)
    before = sum(parameter.numel() for parameter in model.parameters())
    remove_blocks(model, gone)
    assert torch.equal(model(IDS).logits, silenced(IDS).logits)
    parts = anatomy(model)
    assert parts.blocks == [block for block in BLOCKS if block not in gone]
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    for index, layer in enumerate(parts.layers):
        for kind in KINDS:
            assert parts.has(layer, kind) == (Block(index, kind) not in gone)
            assert (parts.groups(layer, kind) == 0) == (Block(index, kind) in gone)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "gone",
    [[Block(0, "attention")], [Block(0, "attention"), Block(2, "attention"), Block(3, "mlp")]],
)
def test_generation_with_a_cache_is_generation_without(family, gone):
    """The first layer's cache tells the positions, so removing its attention is the case to look at."""
    model = tiny_model(family)
    remove_blocks(model, gone)
    with_cache = generate(model, use_cache=True)
    assert with_cache.shape[1] == IDS.shape[1] + 8
    assert torch.equal(with_cache, generate(model, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_is_for_a_while(family):
    model = tiny_model(family)
    dense = model(IDS).logits
    removed = copy.deepcopy(model)
    remove_blocks(removed, [Block(1, "mlp")])
    with without(anatomy(model), 1, ["mlp"]):
        assert torch.equal(model(IDS).logits, removed(IDS).logits)
    assert torch.equal(model(IDS).logits, dense)


def test_a_linear_method_walks_what_is_there():
    model = tiny_model("llama")
    remove_blocks(model, [Block(0, "attention"), Block(1, "mlp")])
    parts = anatomy(model)
    assert [
        sorted(parts.linears(layer)) == sorted(sum(parts.inputs_of(layer), ()))
        for layer in parts.layers
    ] == [True] * 4
    assert len(parts.linears(parts.layers[0])) == 3
    assert len(parts.linears(parts.layers[1])) == 4


@pytest.mark.parametrize(
    ("blocks", "said"),
    [([Block(4, "mlp")], r"no 4\.mlp to remove"), ([Block(1, "mlp")] * 2, "named twice")],
)
def test_what_is_not_there_is_said_and_changes_nothing(blocks, said):
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=said):
        remove_blocks(model, blocks)
    assert anatomy(model).blocks == BLOCKS


def test_a_block_goes_once():
    model = tiny_model("opt")
    remove_blocks(model, [Block(1, "mlp")])
    with pytest.raises(PrunebenchError, match=r"no 1\.mlp to remove"):
        remove_blocks(model, [Block(1, "mlp")])


def test_a_post_norm_model_is_refused():
    model = tiny_model("opt", do_layer_norm_before=False)
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        remove_blocks(model, [Block(1, "mlp")])
