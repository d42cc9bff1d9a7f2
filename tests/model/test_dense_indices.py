"""The record names units as the dense model does, whatever was cut in which order."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.measure.audit import audit, dense_facts
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.width import keep_groups
from prunebench.plugin.api.context import Context
from prunebench.record.kept_units import KeptUnits, indices_of
from tiny import tiny_model

DENSE = tiny_model("llama", num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4)


def labelled():
    """A model whose weights say which unit of the dense model they belong to."""
    model = copy.deepcopy(DENSE)
    hidden = torch.arange(48.0)
    model.model.norm.weight.copy_(hidden)
    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.weight.fill_(index)
        layer.post_attention_layernorm.weight.fill_(index)
        layer.self_attn.k_proj.weight.copy_(torch.arange(4.0).repeat_interleave(6)[:, None])
        layer.mlp.up_proj.weight.copy_(torch.arange(80.0)[:, None])
    return model


def read_off(model) -> dict[str, object]:
    """What the labels say: independent of the bookkeeping."""
    found: dict[str, object] = {"hidden": [int(value) for value in model.model.norm.weight]}
    layers = []
    parts = anatomy(model)
    for layer in parts.layers:
        has_mlp = parts.has(layer, "mlp")
        norm = layer.post_attention_layernorm if has_mlp else layer.input_layernorm
        index = int(norm.weight[0])
        layers.append(index)
        found[f"{index}.mlp"] = [int(row[0]) for row in layer.mlp.up_proj.weight] if has_mlp else []
        found[f"{index}.attention"] = (
            [int(row[0]) for row in layer.self_attn.k_proj.weight[::6]]
            if parts.has(layer, "attention")
            else []
        )
    return found | {"layers": layers}


def written(kept: KeptUnits) -> dict[str, object]:
    layers, total = indices_of(kept.layers)
    assert total == 5
    found: dict[str, object] = {"layers": layers, "hidden": indices_of(kept.hidden)[0]}
    for kind, units, dense in (("attention", kept.attention, 4), ("mlp", kept.mlp, 80)):
        assert set(units) <= set(layers)
        for layer in layers:
            text = units.get(layer)
            indices, total = indices_of(text) if text else (list(range(dense)), dense)
            assert total == dense
            found[f"{layer}.{kind}"] = indices
    return found


def subset(data: st.DataObject, units: Iterable[int]) -> list[int]:
    return sorted(data.draw(st.sets(st.sampled_from(list(units)), min_size=1)))


def cut(data: st.DataObject, model, context: Context) -> None:
    """One random cut, counted in the model as it is now."""
    parts = anatomy(model)
    kind = data.draw(st.sampled_from(["layers", "blocks", "groups", "hidden"]))
    if kind == "layers":
        gone = data.draw(st.sets(st.integers(0, len(parts.layers) - 1), max_size=1))
        if len(gone) < len(parts.layers):
            context.remove_layers(model, gone)
    elif kind == "blocks":
        blocks = [block for block in parts.blocks if len(parts.blocks) > 1]
        chosen = data.draw(st.sampled_from(blocks)) if blocks else None
        context.remove_blocks(model, (block for block in [chosen] if block is not None))
    elif kind == "groups":
        block = data.draw(st.sampled_from(parts.blocks))
        present = parts.groups(parts.layers[block.layer], block.kind)
        context.keep_groups(model, {block: subset(data, range(present))})
    else:
        context.keep_hidden(model, subset(data, range(parts.embeddings.weight.shape[1])))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_order_of_cuts_is_counted_in_the_dense_model(data: st.DataObject) -> None:
    model = labelled()
    facts = dense_facts(model)
    context = Context(None, 0, list(range(5)))
    for _ in range(data.draw(st.integers(0, 6))):
        cut(data, model, context)
    found = audit(model, facts, context.dense_indices)
    assert found.kept is not None
    assert written(found.kept) == read_off(model)
    assert context.kept_layers == found.kept_layers


def test_only_what_is_smaller_is_listed() -> None:
    model = labelled()
    facts = dense_facts(model)
    context = Context(None, 0, list(range(5)))
    context.keep_groups(model, {Block(3, "mlp"): range(80), Block(2, "attention"): [0, 3]})
    context.remove_layers(model, [0])
    context.remove_blocks(model, [Block(0, "mlp")])
    kept = audit(model, facts, context.dense_indices).kept
    assert kept == KeptUnits(
        layers="1-4 of 5",
        attention={2: "0,3 of 4"},
        mlp={1: "none of 80"},
        hidden="0-47 of 48",
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_method_that_cuts_on_its_own_leaves_the_units_unknown(first: bool) -> None:
    model = labelled()
    facts = dense_facts(model)
    context = Context(None, 0, list(range(5)))
    if first:
        context.keep_groups(model, {Block(1, "mlp"): range(0, 80, 2)})
    keep_groups(model, {Block(1, "mlp"): range(7)})
    kept = audit(model, facts, context.dense_indices).kept
    assert kept is not None
    assert kept.mlp == {1: None}


def test_all_blocks_cannot_be_removed_and_nothing_changes_then() -> None:
    model = labelled()
    context = Context(None, 0, list(range(5)))
    context.remove_blocks(model, [Block(1, "mlp")])
    before = copy.deepcopy(context.dense_indices)
    with pytest.raises(PrunebenchError, match="all attentions and MLPs would be removed"):
        context.remove_blocks(model, anatomy(model).blocks)
    assert context.dense_indices == before
    assert len(anatomy(model).blocks) == 9
