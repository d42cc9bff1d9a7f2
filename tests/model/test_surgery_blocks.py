"""Removed attentions and MLPs: residual path and KV cache work, neighbours are unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import generated
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.coupling.sub_block import KINDS
from prunebench.model.surgery import remove_blocks, without
from tiny import FAMILIES, tiny_model

IDS = torch.arange(2, 26).view(2, 12) * 7 % 300
BLOCKS = [Block(layer, kind) for layer in range(4) for kind in KINDS]


def silence(model, block: Block) -> None:
    """The same without surgery: write zeros to the residual."""
    parts = anatomy(model)
    out = parts.layers[block.layer].get_submodule(
        parts.cuts(parts.layers[block.layer], block.kind)[-1].linear
    )
    out.weight.zero_()
    if out.bias is not None:
        out.bias.zero_()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5)
@given(removed=st.sets(st.sampled_from(BLOCKS), min_size=1))
def test_removing_a_block_equals_silencing_it(family, removed):
    model = tiny_model(family)
    silenced = copy.deepcopy(model)
    for block in removed:
        silence(silenced, block)
    before = sum(parameter.numel() for parameter in model.parameters())
    remove_blocks(model, removed)
    assert torch.equal(model(IDS).logits, silenced(IDS).logits)
    parts = anatomy(model)
    assert parts.blocks == [block for block in BLOCKS if block not in removed]
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    for index, layer in enumerate(parts.layers):
        for kind in KINDS:
            assert parts.has(layer, kind) == (Block(index, kind) not in removed)
            assert (parts.groups(layer, kind) == 0) == (Block(index, kind) in removed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "removed",
    [[Block(0, "attention")], [Block(0, "attention"), Block(2, "attention"), Block(3, "mlp")]],
)
def test_generation_is_the_same_with_and_without_a_cache(family, removed):
    """The first attention is the critical case: positions come from the first layer's cache."""
    model = tiny_model(family)
    remove_blocks(model, removed)
    with_cache = generated(model, IDS, 8, use_cache=True)
    assert with_cache.shape[1] == IDS.shape[1] + 8
    assert torch.equal(with_cache, generated(model, IDS, 8, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_restores_the_layer(family):
    model = tiny_model(family)
    dense = model(IDS).logits
    removed = copy.deepcopy(model)
    remove_blocks(removed, [Block(1, "mlp")])
    with without(anatomy(model), 1, ["mlp"]):
        assert torch.equal(model(IDS).logits, removed(IDS).logits)
    assert torch.equal(model(IDS).logits, dense)


def test_a_linear_method_prunes_the_blocks_that_remain():
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
    ("blocks", "message"),
    [([Block(4, "mlp")], r"no 4\.mlp to remove"), ([Block(1, "mlp")] * 2, "named twice")],
)
def test_an_unknown_block_is_refused_and_changes_nothing(blocks, message):
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=message):
        remove_blocks(model, blocks)
    assert anatomy(model).blocks == BLOCKS


def test_a_block_can_be_removed_only_once():
    model = tiny_model("opt")
    remove_blocks(model, [Block(1, "mlp")])
    with pytest.raises(PrunebenchError, match=r"no 1\.mlp to remove"):
        remove_blocks(model, [Block(1, "mlp")])


def test_a_post_norm_model_is_refused():
    model = tiny_model("opt", do_layer_norm_before=False)
    with pytest.raises(PrunebenchError, match="normalises after adding"):
        remove_blocks(model, [Block(1, "mlp")])
