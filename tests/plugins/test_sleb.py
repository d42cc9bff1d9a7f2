"""SLEB: the choices of the plain greedy loop over whole layers, with less work."""

from __future__ import annotations

import functools
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
from prunebench_plugins import removal_search
from tiny import FAMILIES, tiny_model


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["sleb"].value
    return found


def prune(model, **options: object) -> Context:
    context = Context(tiny_calibration(2, 10), 0, list(range(len(anatomy(model).layers))))
    method = registered()(registered().Options.model_validate(options))
    with torch.no_grad():
        method.prune(model, context)
    return context


@torch.no_grad()
def plain_greedy(family: str, seed: int, candidates: list[int], count: int):
    """Every variant as a model of its own; of equal ones the lower layer goes."""
    order: list[int] = []
    perplexities = []
    steps = []
    for _ in range(count):
        losses = []
        for layer in candidates:
            variant = tiny_model(family, seed)
            remove_layers(variant, [*order, layer])
            ids = tiny_calibration(2, 10)
            losses.append(float(variant(ids, labels=ids).loss))
        order.append(candidates[losses.index(min(losses))])
        candidates = [layer for layer in candidates if layer != order[-1]]
        perplexities.append(math.exp(min(losses)))
        steps.append(losses)
    return order, perplexities, steps


@settings(max_examples=4)
@given(
    st.sampled_from(FAMILIES),
    st.integers(0, 1000),
    st.integers(1, 2),
    st.integers(0, 1),
    st.booleans(),
)
def test_the_choices_are_those_of_the_plain_loop(
    family: str, seed: int, count: int, barrier: int, bounded: bool
) -> None:
    candidates = list(range(1, 4 - barrier))
    order, perplexities, _ = plain_greedy(family, seed, candidates, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_forward, "SUBSET", 4 if bounded else 1 << 20)
        # Room for the states below the guess, for some of them, or for none
        patch.setattr(removal_search, "KEPT_BYTES", [1 << 20, 6000, 0][seed % 3])
        patch.setitem(batches.BATCH_TOKENS, "cpu", 10)  # a window a batch
        notes = prune(tiny_model(family, seed), count=count, latter_barrier=barrier).notes
    assert notes["removed_in_order"] == order
    assert notes["perplexity_after_each"] == pytest.approx(perplexities, rel=1e-4)


def test_the_released_search_evaluates_every_variant_in_full() -> None:
    order, perplexities, steps = plain_greedy("llama", 3, [1, 2], 2)
    notes = prune(tiny_model("llama", 3), count=2, mode="reference").notes
    assert notes["removed_in_order"] == order
    assert notes["perplexity_after_each"] == pytest.approx(perplexities, rel=1e-4)
    for found, expected in zip(notes["losses_per_step"], steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert notes["head_evaluations"] == notes["naive_evaluations"] == 2 + 1
    # Two variants of three layers, and one of two.
    assert notes["decoder_evaluations"] == pytest.approx((2 * 3 + 2) / 4)


def test_half_of_the_decoder_is_run() -> None:
    notes = prune(tiny_model("llama", num_hidden_layers=12), count=1).notes
    assert notes["naive_evaluations"] == 10
    assert notes["decoder_evaluations"] < 0.66 * notes["naive_evaluations"]


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_of_equal_layers_the_lower_one_goes(mode: str) -> None:
    model = tiny_model("llama")
    for layer in anatomy(model).layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    context = prune(model, count=3, early_barrier=0, latter_barrier=0, mode=mode)
    assert context.notes["removed_in_order"] == [0, 1, 2]
    assert context.kept_layers == [3]


def test_a_post_norm_model_loses_whole_layers() -> None:
    """Its attentions and MLPs cannot be removed one by one; its layers can."""
    assert len(prune(tiny_model("opt", do_layer_norm_before=False), count=1).kept_layers) == 3


def test_layers_that_were_removed_before_keep_their_dense_names() -> None:
    model, context = tiny_model("llama"), Context(tiny_calibration(2, 10), 0, [0, 1, 2, 3])
    with torch.no_grad():
        context.remove_layers(model, [0])
        options = registered().Options.model_validate(
            {"count": 1, "early_barrier": 0, "latter_barrier": 2}
        )
        registered()(options).prune(model, context)
    assert context.notes["removed_in_order"] == [1]
    assert context.kept_layers == [2, 3]


def test_progress_counts_variants() -> None:
    seen: list[tuple[int, int]] = []
    context = Context(
        tiny_calibration(2, 10), 0, [0, 1, 2, 3], lambda done, total: seen.append((done, total))
    )
    with torch.no_grad():
        registered()(registered().Options.model_validate({"count": 2})).prune(
            tiny_model("llama"), context
        )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 3}, "3 layers cannot be removed: of 4 layers the first 1 and the last 1"),
        ({"count": 4}, "all 4 layers would be removed"),
        ({"count": 5}, "5 layers cannot be removed: the model has 4"),
        ({"ratio": 0.25, "early_barrier": 3}, "the first 3 and the last 1 always stay"),
    ],
)
def test_more_than_there_is_is_refused_before_any_work(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(Context, "partial_forward", too_early)
    with pytest.raises(PrunebenchError, match=message) as caught:
        prune(tiny_model("llama"), **options)
    assert caught.value.hint


def test_a_loss_of_nan_names_the_layer() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(PrunebenchError, match=r"the loss without layer \d is NaN"):
        prune(model, count=1)


def test_ratio_and_count_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        registered().Options.model_validate({"ratio": 0.5, "count": 1})


@settings(max_examples=25)
@given(st.integers(1, 80), st.floats(0, 0.99))
def test_a_ratio_is_the_nearest_number_of_layers(total: int, ratio: float) -> None:
    options = registered().Options.model_validate({"ratio": ratio})
    if int(total * ratio + 0.5) >= total:
        with pytest.raises(PrunebenchError, match="would be removed"):
            options.layers(total)
    else:
        assert abs(options.layers(total) - total * ratio) <= 0.5 + 1e-9


def test_a_fifth_of_the_layers_goes_if_nothing_is_said() -> None:
    assert [registered().Options().layers(total) for total in (2, 5, 32, 40)] == [0, 1, 6, 8]
