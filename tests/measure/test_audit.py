from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.measure.audit import audit, dense_facts
from prunebench.model.anatomy import Block, anatomy
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups, keep_hidden
from tiny import FAMILIES, tiny_model


def linears(model):
    parts = anatomy(model)
    return [linear for layer in parts.layers for linear in parts.linears(layer).values()]


def keep_two_of_four(model):
    for linear in linears(model):
        linear.weight.view(-1, 4)[:, 1:3] = 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_has_the_form_dense(family):
    model = tiny_model(family)
    dense = dense_facts(model)
    found = audit(model, dense, DenseIndices([0, 1, 2, 3]), [(2, 4)])
    assert (found.form, found.speedup_expected, found.sparsity, found.removed_share) == (
        "dense",
        False,
        0,
        0,
    )
    assert (
        found.parameters
        == found.parameters_dense
        == sum(weight.numel() for weight in set(model.parameters()))
    )
    assert (
        found.prunable == dense.prunable == sum(linear.weight.numel() for linear in linears(model))
    )
    assert found.memory_bytes >= 4 * found.parameters
    assert found.disk_bytes >= 4 * found.parameters
    assert found.patterns[0].violations == found.patterns[0].groups == found.prunable / 4


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 2**32))
def test_zeros_are_counted_matrix_by_matrix(share, seed):
    model = tiny_model("llama")
    dense = dense_facts(model)
    generator = torch.Generator().manual_seed(seed)
    for linear in linears(model):
        linear.weight[torch.rand(linear.weight.shape, generator=generator) < share] = 0
    found = audit(model, dense, DenseIndices([0, 1, 2, 3]))
    expected = [
        sum(value == 0 for row in linear.weight.tolist() for value in row)
        for linear in linears(model)
    ]
    assert [entry.zeros for entry in found.linears] == expected
    assert found.zeros == sum(expected)
    assert found.sparsity == pytest.approx(sum(expected) / found.prunable)
    assert found.form == ("dense with zeros" if sum(expected) else "dense")
    assert not found.speedup_expected


def test_a_negative_zero_is_a_zero_and_a_tiny_weight_is_not():
    model = tiny_model("llama")
    dense = dense_facts(model)
    weight = linears(model)[0].weight
    weight[0, 0], weight[0, 1] = -0.0, 1e-42
    assert audit(model, dense, DenseIndices([0, 1, 2, 3])).zeros == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_keeps_two_of_four_is_legal_and_not_faster(dtype):
    model = tiny_model("qwen3").to(dtype)
    dense = dense_facts(model)
    keep_two_of_four(model)
    found = audit(model, dense, DenseIndices([0, 1, 2, 3]), [(2, 4), (1, 4), (4, 8)])
    assert [(entry.pattern, entry.violations) for entry in found.patterns] == [
        ("2:4", 0),
        ("1:4", found.prunable // 4),
        ("4:8", 0),
    ]
    assert not found.speedup_expected
    assert "no speed-up" in found.note
    assert "sparse tensor cores" in found.note


def test_removed_layers_keep_their_dense_numbers_and_should_be_faster():
    model = tiny_model("llama")
    dense = dense_facts(model)
    remove_layers(model, [1, 2])
    found = audit(model, dense, DenseIndices([0, 3]))
    assert (found.form, found.speedup_expected) == ("layers removed", True)
    assert (found.kept_layers, found.removed_layers, found.layers_dense) == ([0, 3], [1, 2], 4)
    assert {entry.layer for entry in found.linears} == {0, 3}
    assert found.prunable * 2 == found.prunable_dense
    assert found.removed_share == pytest.approx(1 - found.parameters / dense.parameters)
    assert 0 < found.removed_share < 1


def test_zeros_of_the_dense_model_do_not_count_as_pruned():
    model = tiny_model("llama")
    keep_two_of_four(model)
    dense = dense_facts(model)
    remove_layers(model, [0])
    assert audit(model, dense, DenseIndices([1, 2, 3])).form == "layers removed"
    linears(model)[0].weight.zero_()
    assert audit(model, dense, DenseIndices([1, 2, 3])).form == "layers removed, dense with zeros"


def test_narrower_matrices_are_found():
    model = tiny_model("llama")
    dense = dense_facts(model)
    mlp = model.model.layers[2].mlp
    for name, weight in (
        ("gate_proj", mlp.gate_proj.weight[:64]),
        ("up_proj", mlp.up_proj.weight[:64]),
    ):
        getattr(mlp, name).weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    mlp.down_proj.weight = torch.nn.Parameter(
        mlp.down_proj.weight[:, :64].clone(), requires_grad=False
    )
    found = audit(model, dense, DenseIndices([0, 1, 2, 3]))
    assert (found.form, found.speedup_expected) == ("sliced", True)
    assert found.prunable_dense - found.prunable == 3 * 16 * 48
    assert [(each.layer, each.kind, each.groups, each.groups_dense) for each in found.widths] == [
        (2, "mlp", 64, 80)
    ]
    assert {entry.dense for entry in found.linears if entry.layer == 2 and "mlp" in entry.name} == {
        80 * 48
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_blocks_and_narrower_ones_are_listed_by_dense_layer(family):
    model = tiny_model(family)
    dense = dense_facts(model)
    remove_layers(model, [0])
    remove_blocks(model, [Block(0, "mlp"), Block(2, "attention")])
    keep_groups(model, {Block(0, "attention"): [0]})
    found = audit(model, dense, DenseIndices([1, 2, 3]))
    assert found.form == "layers removed, blocks removed, sliced"
    assert found.speedup_expected
    assert found.removed_blocks == ["1.mlp", "3.attention"]
    assert [(each.layer, each.kind, each.groups) for each in found.widths] == [(1, "attention", 1)]
    assert found.hidden == found.hidden_dense == 48
    assert found.parameters == sum(parameter.numel() for parameter in set(model.parameters()))


def test_fewer_residual_channels_are_found():
    model = tiny_model("llama")
    dense = dense_facts(model)
    keep_hidden(model, range(40))
    found = audit(model, dense, DenseIndices([0, 1, 2, 3]))
    assert (found.form, found.hidden, found.hidden_dense) == ("sliced", 40, 48)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    model = tiny_model("llama")
    dense = dense_facts(model)
    remove_layers(model, [0])
    model.model.layers[1].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(PrunebenchError, match=r"layer 2, mlp\.down_proj.*not finite"):
        audit(model, dense, DenseIndices([1, 2, 3]))


def test_half_precision_that_spans_its_whole_range_is_finite():
    model = tiny_model("llama").to(torch.float16)
    weight = linears(model)[0].weight
    weight[0, 0], weight[0, 1] = 65504, -65504
    assert dense_facts(model).zeros >= 0


def test_removed_layers_that_the_method_does_not_report_are_an_error():
    model = tiny_model("llama")
    dense = dense_facts(model)
    remove_layers(model, [0])
    with pytest.raises(PrunebenchError, match="3 decoder layers, but 4 of 4 should remain"):
        audit(model, dense, DenseIndices([0, 1, 2, 3]))
