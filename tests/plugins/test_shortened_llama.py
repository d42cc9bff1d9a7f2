"""Shortened LLaMA: one ranking of whole layers by perplexity, gradients or weights."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.layerwise import partial_forward
from prunebench.model import batches
from prunebench.model.surgery import remove_layers
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from prunebench_plugins import llm_pruner_scores, removal_ranking
from tiny import FAMILIES, tiny_model

FREE = {"plus_heuristic": False}


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["shortened-llama"].value
    return found


def method(**options: object) -> Method:
    return registered()(registered().Options.model_validate(options))


def prune(model, windows: int = 3, **options: object) -> Context:
    calibration = tiny_calibration(windows, 10)
    context = Context(calibration, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        method(**options).prune(model, context)
    return context


def ascending(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=scores.__getitem__)


@settings(max_examples=4)
@given(st.sampled_from(FAMILIES), st.integers(0, 1000), st.sampled_from(["clean", "reference"]))
def test_the_order_by_perplexity_is_that_of_rebuilt_models(
    family: str, seed: int, mode: str
) -> None:
    ids, expected = tiny_calibration(3, 10), []
    for layer in range(4):
        variant = tiny_model(family, seed)
        remove_layers(variant, [layer])
        with torch.no_grad():
            expected.append(math.exp(float(variant(ids, labels=ids).loss)))
    context = prune(tiny_model(family, seed), count=2, mode=mode, **FREE)
    assert context.notes["score"] == pytest.approx(expected, rel=1e-4)
    assert context.notes["order"] == ascending(context.notes["score"])
    assert context.notes["removed_in_order"] == context.notes["order"][:2]
    assert context.kept_layers == sorted(context.notes["order"][2:])


@pytest.mark.parametrize(
    ("family", "count", "plus", "room"),
    [("llama", 2, True, 1 << 20), ("qwen2", 4, False, 0), ("opt", 0, False, 0)],
)
def test_layers_that_stay_are_bounded_and_the_choice_is_that_of_exact_losses(
    family: str, count: int, plus: bool, room: int
) -> None:
    def notes(**options: object):
        model = tiny_model(family, 7, num_hidden_layers=12)
        return prune(model, count=count, plus_heuristic=plus, **options).notes

    exact = notes(whole_order=True)
    assert exact["lower_bounds"] == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_forward, "SUBSET", 40)
        patch.setitem(batches.BATCH_TOKENS, "cpu", 10)  # a window a batch
        patch.setattr(removal_ranking, "KEPT_BYTES", room)
        found = notes()
    assert found["removed_in_order"] == exact["removed_in_order"]
    assert (
        found["removed_in_order"]
        == [layer for layer in found["order"] if not plus or 4 <= layer < 10][:count]
    )
    bounded = set(found["lower_bounds"])
    assert bounded
    for layer, (score, loss) in enumerate(zip(found["score"], exact["score"], strict=True)):
        if layer in bounded:
            assert score <= loss * (1 + 1e-4)
        else:
            assert score == pytest.approx(loss, rel=1e-5)
    highest = max((exact["score"][layer] for layer in found["removed_in_order"]), default=0)
    assert all(found["score"][layer] > highest for layer in bounded if not plus or 4 <= layer < 10)


def gradients(model, parts: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The sum over batches of the gradient of each one's mean loss, by layer and weight."""
    with torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=True)
        for batch in parts:
            model(batch, labels=batch).loss.backward()
    return [
        {
            name: (parameter * parameter.grad).detach()
            for name, parameter in layer.named_parameters()
            if "weight" in name
        }
        for layer in anatomy(model).layers
    ]


def released(tables: list[dict[str, torch.Tensor]], power: int, weight: str, block: str):
    """The released reductions of a layer's weights, in float64."""
    found = []
    for of_layer in tables:
        numbers = []
        for values in of_layer.values():
            rows = values.double().abs().pow(power)
            rows = rows.sum(1) if rows.dim() > 1 else rows
            numbers.append(getattr(torch, weight)(rows))
        found.append(float(getattr(torch, block)(torch.stack(numbers))))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_taylor_adds_up_weight_times_gradient(family: str) -> None:
    ids = tiny_calibration(3, 10)
    expected = released(gradients(tiny_model(family), [ids]), 1, "sum", "sum")
    notes = prune(tiny_model(family), criterion="taylor", count=1, **FREE).notes
    assert notes["score"] == pytest.approx(expected, rel=1e-4)
    assert notes["order"] == ascending(expected)


def test_windows_of_a_smaller_last_batch_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llm_pruner_scores.BATCH_TOKENS, "cpu", 10)  # a window a pass
    ids = tiny_calibration(5, 10)
    options = {"criterion": "taylor", "count": 1, "norm_power": 2, **FREE}
    expected = released(gradients(tiny_model("llama"), [ids[:3], ids[3:]]), 2, "sum", "sum")
    notes = prune(tiny_model("llama"), 5, batch_size=3, **options).notes
    assert notes["score"] == pytest.approx(expected, rel=1e-3)
    together = prune(tiny_model("llama"), 5, **options).notes["score"]
    assert notes["score"] != pytest.approx(together, rel=1e-2)


REDUCTIONS = list(itertools.product(["sum", "mean", "max", "prod"], repeat=2))


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_scores_are_reduced_as_asked(mode: str) -> None:
    """Products become logarithms, which have the same order."""
    vectors = [torch.tensor([0.5, 3.0, 0.25]), torch.tensor([2.0, 5.0])]
    for weight, block in REDUCTIONS:
        numbers = [getattr(torch, weight)(vector) for vector in vectors]
        expected = float(getattr(torch, block)(torch.stack(numbers)))
        if mode == "clean" and "prod" in (weight, block):
            expected = math.log(expected)
        found = method(weight_reduction=weight, block_reduction=block, mode=mode)._score(vectors)
        assert found == pytest.approx(expected, abs=1e-6), (weight, block)


def test_released_products_leave_the_range_of_float32() -> None:
    """All are 0, so that the order is that of the layers; logarithms tell them apart."""
    options = {"criterion": "magnitude", "weight_reduction": "prod", "block_reduction": "prod"}
    model = tiny_model("llama", 5)
    for layer, factor in zip(anatomy(model).layers, (0.2, 0.05, 0.15, 0.1), strict=True):
        for parameter in layer.parameters():
            parameter.mul_(factor)
    released, clean = (
        prune(copy.deepcopy(model), count=1, mode=mode, **options, **FREE).notes
        for mode in ("reference", "clean")
    )
    assert released["score"] == [0.0] * 4
    assert released["order"] == [0, 1, 2, 3]
    assert clean["order"] == [1, 3, 2, 0]


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_a_layer_of_zeros_has_the_score_zero(criterion: str) -> None:
    model = tiny_model("llama")
    for parameter in anatomy(model).layers[2].parameters():
        parameter.zero_()
    notes = prune(model, criterion=criterion, count=1, **FREE).notes
    assert notes["score"][2] == 0
    assert notes["removed_in_order"] == [2]


@pytest.mark.parametrize("criterion", ["ppl", "magnitude"])
def test_the_first_four_and_the_last_two_stay_by_default(criterion: str) -> None:
    def model():
        return tiny_model("llama", num_hidden_layers=9)

    free, plus = (
        prune(model(), criterion=criterion, count=2, plus_heuristic=plus) for plus in (False, True)
    )
    assert free.notes["order"] == plus.notes["order"]  # applied when the order is used
    allowed = [layer for layer in plus.notes["order"] if layer in {4, 5, 6}]
    assert plus.notes["removed_in_order"] == allowed[:2]
    assert method().options.plus_heuristic


def test_kept_layers_are_the_same_bit_for_bit() -> None:
    model, dense = tiny_model("qwen2"), tiny_model("qwen2")
    context = prune(model, criterion="taylor", count=2, **FREE)
    for layer, index in zip(anatomy(model).layers, context.kept_layers, strict=True):
        for mine, its in zip(
            layer.parameters(), anatomy(dense).layers[index].parameters(), strict=True
        ):
            assert torch.equal(mine, its)
    assert all(
        parameter.requires_grad == its.requires_grad and parameter.grad is None
        for parameter, its in zip(model.parameters(), dense.parameters(), strict=False)
    )


def test_released_losses_are_rounded_to_the_type_of_the_model() -> None:
    notes = prune(tiny_model("llama").bfloat16(), mode="reference", count=1, **FREE).notes
    for score in notes["score"]:
        loss = torch.tensor(math.log(score))
        assert float(loss.bfloat16()) == pytest.approx(float(loss), abs=1e-6)


def test_only_half_of_the_decoder_is_run() -> None:
    notes = prune(tiny_model("llama", num_hidden_layers=12), count=1).notes
    assert notes["naive_evaluations"] == notes["head_evaluations"] == 12
    # 11 layers to get before the last one, and what is above each of 12.
    assert notes["decoder_evaluations"] == pytest.approx((11 + 66) / 12, abs=1e-3)


def test_a_large_vocabulary_runs_for_the_layers_that_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_forward, "SUBSET", 40)
    notes = prune(tiny_model("llama", num_hidden_layers=12), count=1).notes
    assert notes["naive_evaluations"] == 12
    # Three runs for the tangent, one for the layer that goes, and a few for close ones.
    assert 4 <= notes["head_evaluations"] <= 9
    assert len(notes["lower_bounds"]) == 12 - (notes["head_evaluations"] - 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "1 layers cannot be removed: of 4 layers the first 4 and the last 2 are"),
        ({"count": 4, **FREE}, "all 4 layers would be removed"),
    ],
)
def test_what_cannot_be_removed_is_refused_before_any_work(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Context, "partial_forward")
    with pytest.raises(PrunebenchError, match=message) as caught:
        prune(tiny_model("llama"), **options)
    assert caught.value.hint


@pytest.mark.parametrize("criterion", ["ppl", "taylor", "magnitude"])
def test_weights_that_are_not_finite_name_a_layer(criterion: str) -> None:
    model = tiny_model("llama")
    anatomy(model).layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(PrunebenchError, match=r"layer \d|loss on calibration windows"):
        prune(model, criterion=criterion, count=1, **FREE)


def test_weights_alone_need_no_text() -> None:
    needs = registered().needs_calibration_for
    assert [needs(method(criterion=name).options) for name in ("ppl", "taylor", "magnitude")] == [
        True,
        True,
        False,
    ]


def test_options_of_other_criteria_have_no_effect() -> None:
    idle = method(norm_power=2, batch_size=3).options.without_effect()
    assert set(idle) == {"norm_power", "weight_reduction", "block_reduction", "batch_size"}
    magnitude = method(criterion="magnitude", mode="reference").options.without_effect()
    assert set(magnitude) == {"batch_size", "mode", "whole_order"}
    assert "whole_order" in method(mode="reference").options.without_effect()
    assert set(
        method(
            criterion="taylor", mode="reference", block_reduction="prod"
        ).options.without_effect()
    ) == {"whole_order"}


def test_six_of_32_and_eight_of_40_layers_go_by_default() -> None:
    assert [method().options.layers(depth) for depth in (32, 40)] == [6, 8]
