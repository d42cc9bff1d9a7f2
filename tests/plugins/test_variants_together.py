"""Removal searches that run variants together choose and count as those that run one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench import Context, anatomy
from prunebench.layerwise import partial_forward
from prunebench.layerwise.partial_forward import PartialForward
from prunebench.model import batches
from prunebench_plugins import removal_search
from prunebench_plugins.removal_ranking import lowest
from prunebench_plugins.removal_search import WHOLE, Result, Search, Unit
from tiny import FAMILIES, tiny_model

LAYERS = 6
PARTS = [Unit((kind,), layer) for kind in ("attention", "mlp") for layer in range(LAYERS)]
LAYERS_WHOLE = [Unit(WHOLE, layer) for layer in range(LAYERS)]
UNITS = pytest.mark.parametrize("units", [PARTS, LAYERS_WHOLE], ids=["parts", "layers"])


def context(windows: int = 3) -> Context:
    ids = torch.randint(0, 320, (windows, 12), generator=torch.Generator().manual_seed(2))
    return Context(ids, 0, list(range(LAYERS)))


@pytest.fixture(autouse=True)
def no_grad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(partial_forward, "SUBSET", 8)
    with torch.no_grad():
        yield


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each run of a layer took."""
    seen: list[int] = []
    run = PartialForward.run

    def counted(self: Any, layer: int, batch: int, hidden: torch.Tensor, gone=()) -> torch.Tensor:
        seen.append(len(hidden))
        return run(self, layer, batch, hidden, gone)

    monkeypatch.setattr(PartialForward, "run", counted)
    return seen


def searched(monkeypatch, model, units: list[Unit], at_once: int, windows: int = 3):
    monkeypatch.setattr(PartialForward, "variants_at_once", at_once)
    looked: list[int] = []
    search = Search(model, context(windows), units, looked.append)
    results = [search.step() for _ in range(3)]
    assert looked == list(range(1, sum(range(len(units) - 2, len(units) + 1)) + 1))
    return results, search


@UNITS
@pytest.mark.parametrize("family", FAMILIES)
def test_the_choices_and_the_costs_are_those_of_one_by_one(
    family: str, units: list[Unit], monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    """With a single batch; with more of them, a variant is given up later or earlier."""
    model = tiny_model(family, num_hidden_layers=LAYERS)
    expected, alone = searched(monkeypatch, model, units, 1)
    assert set(rows) == {3}
    calls = len(rows)
    for at_once in (2, 3):
        rows.clear()
        found, together = searched(monkeypatch, model, units, at_once)
        assert [result.unit for result in found] == [result.unit for result in expected]
        assert [result.loss for result in found] == pytest.approx(
            [result.loss for result in expected], rel=1e-6
        )
        assert together.cost() == alone.cost()
        assert max(rows) == 3 * at_once
        assert len(rows) < 0.85 * calls


@UNITS
def test_several_batches_end_as_soon_as_a_variant_cannot_win(
    units: list[Unit], monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 12)  # a window a batch
    model = tiny_model("llama", num_hidden_layers=LAYERS)
    for layer in anatomy(model).layers[:4]:  # so that variants differ
        layer.mlp.down_proj.weight.mul_(40)
    expected, alone = searched(monkeypatch, model, units, 1, windows=6)
    found, together = searched(monkeypatch, model, units, 3, windows=6)
    assert [result.unit for result in found] == [result.unit for result in expected]
    assert max(rows) == 3
    passes, before = together.forward.decoder_passes, alone.forward.decoder_passes
    assert passes == pytest.approx(before, rel=0.15)


@UNITS
def test_the_last_outputs_of_all_variants_are_those_of_one_by_one(
    units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 48)  # two windows a batch, and one left over
    model = tiny_model("qwen2", num_hidden_layers=LAYERS)
    found = []
    for at_once in (1, 4):
        monkeypatch.setattr(PartialForward, "variants_at_once", at_once)
        found.append(list(Search(model, context(), units, lambda _: None).variants_upwards()))
    alone, together = found
    assert [unit for unit, _ in together] == [unit for unit, _ in alone]
    assert sorted(unit for unit, _ in together) == units
    for (_, ends), (_, others) in zip(alone, together, strict=True):
        assert [len(end) for end in others] == [2, 1]
        torch.testing.assert_close(others, ends)


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that depends on how many variants run together, and more than in truth."""
    run = PartialForward.run

    def off(self: Any, layer: int, batch: int, hidden: torch.Tensor, gone=()) -> torch.Tensor:
        found = run(self, layer, batch, hidden, gone)
        first = (torch.arange(found.shape[-1]) == 0) * (len(hidden) // 3 - 1)
        return found * (1 + 2e-6 * first)

    monkeypatch.setattr(PartialForward, "run", off)


def equal_units() -> Any:
    """A model whose units all write zeros."""
    model = tiny_model("llama", num_hidden_layers=LAYERS)
    for layer in anatomy(model).layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return model


@UNITS
@pytest.mark.usefixtures("rounded")
def test_ties_are_broken_by_the_order_of_units_whatever_rounding_does(
    units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = searched(monkeypatch, equal_units(), units, 4)
    assert [result.unit for result in found] == sorted(units)[:3]


@pytest.mark.usefixtures("rounded")
def test_equal_layers_have_equal_losses_in_a_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialForward, "variants_at_once", 4)
    search = Search(equal_units(), context(), LAYERS_WHOLE, lambda _: None)
    found = lowest(search, len(LAYERS_WHOLE), LAYERS_WHOLE)
    assert [result.unit for result in found.results] == LAYERS_WHOLE
    assert len({result.loss for result in found.results}) == 1


def test_only_losses_that_rounding_may_set_apart_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PartialForward, "variants_at_once", 4)
    search = Search(tiny_model("llama", num_hidden_layers=LAYERS), context(), PARTS, lambda _: None)
    given = [
        Result(5.0 * (1 + gap), unit) for gap, unit in zip((3e-6, 0, 1e-5), PARTS, strict=False)
    ]
    heads = search.forward.head_passes
    assert search.told_apart(given) == given
    assert search.forward.head_passes == heads
    near = [given[0], Result(5.0 * (1 + 3.9e-6), PARTS[1]), given[2]]
    first, second, third = search.told_apart(near)
    assert (first.unit, second.unit, third) == (PARTS[0], PARTS[1], given[2])
    assert first.loss != near[0].loss and second.loss != near[1].loss
    assert search.forward.head_passes == heads + 2
    assert search.told_apart(near)[:2] == [first, second]
    assert search.forward.head_passes == heads + 2  # a variant runs alone once in a step


def test_states_that_are_too_large_to_keep_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    model = tiny_model("llama", num_hidden_layers=LAYERS)
    monkeypatch.setattr(removal_search, "KEPT_BYTES", 2 * 3 * 12 * model.config.hidden_size * 4)
    searched(monkeypatch, model, PARTS, 5)
    assert max(rows) == 2 * 3
    rows.clear()
    monkeypatch.setattr(removal_search, "KEPT_BYTES", 0)
    searched(monkeypatch, model, PARTS, 5)
    assert max(rows) == 3
