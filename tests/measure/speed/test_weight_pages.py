"""Weights of timed models lie side by side: the same numbers, in blocks of whole huge pages."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunebench import anatomy
from prunebench.measure.speed import weight_pages
from prunebench.measure.speed.compare_forms import compare_forms
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.measure.speed.weight_pages import HUGE_PAGE_BYTES, SideBySide, put_side_by_side
from tiny import tiny_model


def addresses(model: nn.Module) -> list[int]:
    return [each.data_ptr() for each in model.parameters()]


def storages(model: nn.Module) -> dict[int, int]:
    """The bytes of each storage by its address."""
    return {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in model.parameters()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "gpt_neox"])
def test_nothing_changes_but_the_place(family: str) -> None:
    model = tiny_model(family)
    before, ids = copy.deepcopy(model), torch.arange(6)[None]
    put_side_by_side(model)
    for (name, mine), (_, its) in zip(
        model.named_parameters(), before.named_parameters(), strict=True
    ):
        assert mine.equal(its), name
        assert mine.requires_grad == its.requires_grad
        assert mine.data_ptr() % 64 == 0
    assert model(ids).logits.equal(before(ids).logits)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (before.get_output_embeddings().weight is before.get_input_embeddings().weight)


def test_weights_of_a_layer_are_neighbours_in_blocks_of_whole_huge_pages() -> None:
    model = tiny_model("llama")
    put_side_by_side(model)
    assert min(addresses(model)) % HUGE_PAGE_BYTES == 0
    assert all(size % HUGE_PAGE_BYTES == 0 for size in storages(model).values())
    assert len(storages(model)) == 1  # it is that small
    attention = anatomy(model).layers[0].self_attn
    queries, keys = attention.q_proj.weight, attention.k_proj.weight
    assert queries.data_ptr() + queries.nbytes == keys.data_ptr()


def test_blocks_begin_where_huge_pages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the memory is that torch gives."""
    empty, shift = torch.empty, iter((64, 4096, HUGE_PAGE_BYTES - 64, 0))

    def elsewhere(size: int, *, dtype: torch.dtype) -> torch.Tensor:
        return empty(size + HUGE_PAGE_BYTES, dtype=dtype)[next(shift, 64) :][:size]

    monkeypatch.setattr(torch, "empty", elsewhere)
    for _ in range(4):
        copies = SideBySide(HUGE_PAGE_BYTES)
        made = [copies.copy(torch.full((number, 7), number)) for number in (3, 5)]
        assert made[0].data_ptr() % HUGE_PAGE_BYTES == 0
        assert made[0].untyped_storage().data_ptr() == made[1].untyped_storage().data_ptr()
        assert [each.unique().tolist() for each in made] == [[3], [5]]


def test_a_second_call_and_lean_leave_them_there() -> None:
    model = tiny_model("llama")
    put_side_by_side(model)
    before = addresses(model)
    put_side_by_side(model)
    Lean(model, 1, 8)  # queries, keys and values are neighbours already
    assert addresses(model) == before


def test_a_block_ends_behind_a_whole_attention_or_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `lean` reads together are neighbours in every layer, so that it copies nothing."""
    model = tiny_model("llama", num_hidden_layers=5)
    layer = model.model.layers[0]
    attention, mlp = (
        sum(p.nbytes for p in each.parameters()) for each in (layer.self_attn, layer.mlp)
    )
    monkeypatch.setattr(weight_pages, "BLOCK_BYTES", max(attention, mlp) + 100)
    put_side_by_side(model)
    assert len(storages(model)) > 5
    before = addresses(model)
    Lean(model, 1, 8)
    assert addresses(model) == before


def test_blocks_are_no_larger_than_they_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is in memory twice while it is filled."""
    monkeypatch.setattr(weight_pages, "HUGE_PAGE_BYTES", 64)
    monkeypatch.setattr(weight_pages, "BLOCK_BYTES", 20_000)
    model = tiny_model("llama")
    large = {name for name, each in model.named_parameters() if each.nbytes >= 20_000}
    before = dict(zip(dict(model.named_parameters()), addresses(model), strict=True))
    put_side_by_side(model)
    assert large
    for name, each in model.named_parameters():
        assert (each.data_ptr() == before[name]) == (name in large), name
        assert each.untyped_storage().nbytes() <= (each.nbytes if name in large else 20_000 + 64)
    assert len(storages(model)) > len(large) + 1


def test_memory_that_parameters_share_stays_shared() -> None:
    model = nn.ParameterList(torch.zeros(4, 4) for _ in range(5))
    model[1].data = model[0].data
    model[3].data = model[2].data[:2]
    whole = torch.zeros(8, 4)
    model[4].data = whole[:4]
    put_side_by_side(model)
    assert model[0].data_ptr() == model[1].data_ptr()
    assert model[2].data_ptr() == model[3].data_ptr()
    assert model[4].data_ptr() == whole.data_ptr()


def test_a_model_can_be_trained_after_it_was_timed() -> None:
    model, ids = tiny_model("llama").requires_grad_(), torch.arange(6)[None]
    compare_forms(model, ids, 3, ["lean"], rounds=1)
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_copies_lie_behind_each_other_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pages, "BLOCK_BYTES", 1024)
    copies = SideBySide()
    weights = [torch.randn(rows, 5) for rows in (3, 30, 12, 52, 2)]
    with torch.inference_mode():  # as where decoders are made
        made = [copies.copy(each.t()) for each in weights[:2]]
    made += [copies.copy(each.t()) for each in weights[2:]]
    for mine, weight in zip(made, weights, strict=True):
        assert mine.equal(weight.t())
        assert mine.is_contiguous()
        assert mine.data_ptr() % weight_pages.ALIGNMENT == made[0].data_ptr() % 64
    first, second, third, large, last = (each.untyped_storage().data_ptr() for each in made)
    assert first == second == third
    assert made[1].data_ptr() - made[0].data_ptr() == 64
    assert len({first, large, last}) == 2  # the large one is alone, and the last still fits
    assert last == first
    assert copies.copy(weights[1]).untyped_storage().data_ptr() != first  # no room is left
