"""LLM-Streamline's window: the highest cosine, n layers removed, the first of n + 1 kept."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.plugin.host import load_plugins
from tiny import tiny_model

IDS = torch.randint(2, 320, (3, 12), generator=torch.Generator().manual_seed(2))


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["llm-streamline"].value
    return found


def prune(model, **options: object) -> Context:
    context = Context(IDS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        registered()(registered().Options.model_validate(options)).prune(model, context)
    return context


def states_of(model) -> list[torch.Tensor]:
    """Inputs of all layers and the last one's output, [windows, length, hidden], no final norm."""
    found: list[torch.Tensor] = []
    for layer in anatomy(model).layers:
        layer.register_forward_hook(
            lambda _, args, kwargs, output: found.extend((args[0], output)), with_kwargs=True
        )
    with torch.no_grad():
        model(IDS)
    return [*found[::2], found[-1]]


def silent(model, *layers: int):
    """These layers add nothing to the residual stream."""
    with torch.no_grad():
        for index in layers:
            layer = anatomy(model).layers[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def test_the_defaults_are_those_of_the_released_code() -> None:
    options = registered().Options()
    assert options.model_dump() == {
        "layer_intervals": 8, "ratio": None, "keep_first": True, "mode": "clean",
    }  # fmt: skip
    assert {"windows": 50, "length": 2048}.items() <= registered().published_calibration.items()


@settings(max_examples=6, deadline=None)
@given(
    depth=st.integers(2, 6),
    count=st.integers(1, 4),
    keep_first=st.booleans(),
    mode=st.sampled_from(["clean", "reference"]),
)
def test_the_window_has_the_highest_mean_cosine(depth, count, keep_first, mode) -> None:
    span = count + keep_first
    if span > depth or count == depth:
        return
    model = tiny_model("llama", seed=depth, num_hidden_layers=depth)
    states = states_of(tiny_model("llama", seed=depth, num_hidden_layers=depth))
    if mode == "reference":
        states[-1] = anatomy(model).final_norm(states[-1])
    cosines = [
        float(0.5 + 0.5 * torch.cosine_similarity(a, b, dim=-1).double().mean())
        for a, b in zip(states, states[span:], strict=False)
    ]
    context = prune(model, layer_intervals=count, keep_first=keep_first, mode=mode)
    assert context.notes["similarity"] == pytest.approx(cosines, abs=1e-6)
    assert all(0 <= each <= 1 for each in context.notes["similarity"])
    best = cosines.index(max(cosines))
    assert context.notes["window"] == [best, best + span - 1]
    assert context.removed_layers == list(range(best + span - count, best + span))
    assert context.removed_layers == context.notes["removed_layers"]


def test_layers_that_change_nothing_have_a_cosine_of_one_and_go() -> None:
    model = silent(tiny_model("llama", num_hidden_layers=5), 2, 3)
    context = prune(model, layer_intervals=1)
    assert max(context.notes["similarity"]) == pytest.approx(1, abs=1e-6)
    assert context.notes["window"] == [2, 3]  # two layers are compared
    assert context.removed_layers == [3]  # and the last of them is removed
    model = silent(tiny_model("llama", num_hidden_layers=5), 2, 3)
    logits = model(IDS).logits
    assert prune(model, layer_intervals=2, keep_first=False).removed_layers == [2, 3]
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-5, atol=1e-6)


def test_a_share_of_the_layers_is_rounded() -> None:
    for ratio, count in ((0.0, 0), (0.1, 0), (0.125, 1), (0.5, 2)):
        assert len(prune(tiny_model("llama"), ratio=ratio).removed_layers) == count
    with pytest.raises(ValueError, match="less than 1"):
        registered().Options(ratio=1.0)
    assert "layer_intervals" in registered().Options(ratio=0.5).without_effect()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "a window of 9 layers is longer than the model, which has 4"),
        ({"layer_intervals": 4}, "a window of 5 layers is longer than the model, which has 4"),
        ({"layer_intervals": 4, "keep_first": False}, "all 4 layers would be removed"),
        ({"ratio": 0.9}, "a window of 5 layers is longer"),
    ],
)
def test_a_window_that_does_not_fit_is_one_clear_error(options, said) -> None:
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=said) as caught:
        prune(model, **options)
    assert "lower `layer_intervals` or `ratio`" in caught.value.hint
    assert len(anatomy(model).layers) == 4


def test_states_that_are_not_finite_are_named() -> None:
    model = tiny_model("llama")
    anatomy(model).layers[2].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(PrunebenchError, match="layers 1 to 2: their input and output") as caught:
        prune(model, layer_intervals=1)
    assert "damaged checkpoint" in caught.value.hint


def test_streaming_is_refused_with_a_reason() -> None:
    assert "removes whole layers" in registered().refuses_streaming(None)
