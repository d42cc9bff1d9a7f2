"""Layer similarity: Fisher's segmentation of neighbours, and one layer kept of each group."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, Method, PrunebenchError, anatomy
from prunebench.model import batches
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from prunebench_plugins.layer_similarity import segments
from tiny import tiny_model

WINDOWS = tiny_calibration(3, 8)


@functools.cache
def registered() -> type[Method]:
    found: type[Method] = load_plugins()["method"]["layer-similarity"].value
    return found


def prune(model, **options: object) -> Context:
    context = Context(WINDOWS, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        registered()(registered().Options.model_validate(options)).prune(model, context)
    return context


def outputs_of(model) -> list[torch.Tensor]:
    """The output of each layer, float64 [tokens, hidden]; no final norm."""
    found: list[torch.Tensor] = []
    for layer in anatomy(model).layers:
        layer.register_forward_hook(lambda _, __, output: found.append(output.flatten(0, 1)))
    with torch.no_grad():
        model(WINDOWS)
    return [one.double() for one in found]


def spread(similarity: torch.Tensor, groups: list[range]) -> float:
    return sum(
        float((similarity[list(group)] - similarity[list(group)].mean(0)).square().sum())
        for group in groups
    )


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(0, 1000), st.data())
def test_groups_are_the_best_of_all_divisions(depth: int, seed: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, depth))
    similarity = torch.rand(
        depth, depth, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found = segments(similarity, number)
    assert [layer for group in found for layer in group] == list(range(depth))
    assert len(found) == number
    least = min(
        spread(similarity, [range(*pair) for pair in itertools.pairwise([0, *cuts, depth])])
        for cuts in itertools.combinations(range(1, depth), number - 1)
    )
    assert spread(similarity, found) == pytest.approx(least)


def test_equal_layers_are_divided_the_same_way_every_time() -> None:
    assert segments(torch.ones(5, 5), 3) == [range(1), range(1, 2), range(2, 5)]


@pytest.mark.parametrize("similarity", ["cosine", "cka"])
def test_similarities_and_influences_are_those_of_the_outputs(
    similarity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 8)  # a window a batch
    states = outputs_of(tiny_model("llama"))
    expected = []
    for a, b in itertools.pairwise(states):
        if similarity == "cosine":
            expected.append(float(torch.cosine_similarity(a, b).mean()))
        else:
            a, b = a - a.mean(0), b - b.mean(0)
            expected.append(float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())))
    notes = prune(
        tiny_model("llama"), similarity=similarity, contribution="influence", count=1
    ).notes
    assert notes["neighbour_similarity"] == pytest.approx(expected, abs=1e-4)
    influence = [
        1 - float(torch.cosine_similarity(a, b).mean()) for a, b in itertools.pairwise(states)
    ]
    assert notes["contribution"][1:] == pytest.approx(influence, abs=1e-4)


@pytest.mark.parametrize("contribution", ["taylor", "influence"])
def test_each_group_keeps_the_layer_that_contributes_most(contribution: str) -> None:
    context = prune(tiny_model("qwen2", num_hidden_layers=7), count=4, contribution=contribution)
    kept = []
    for group in context.notes["groups"]:
        first, last = map(int, group.split("-"))
        kept.append(max(range(first, last + 1), key=context.notes["contribution"].__getitem__))
    assert context.kept_layers == kept
    assert len(kept) == 3
    assert context.notes["removed_in_order"] == [layer for layer in range(7) if layer not in kept]


def test_taylor_is_the_score_of_shortened_llama() -> None:
    other = load_plugins()["method"]["shortened-llama"].value
    context = Context(WINDOWS, 0, [0, 1, 2, 3])
    with torch.no_grad():
        options = {"criterion": "taylor", "count": 1, "plus_heuristic": False}
        other(other.Options.model_validate(options)).prune(tiny_model("opt"), context)
    found = prune(tiny_model("opt"), count=1).notes["contribution"]
    assert found == pytest.approx(context.notes["score"], rel=1e-5)


def test_layers_are_compared_on_some_tokens_of_the_whole_text() -> None:
    """Of 24 tokens at most 10: every third one, however they are divided into batches."""
    chosen = []
    for tokens_at_once in (8, 512):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(batches.BATCH_TOKENS, "cpu", tokens_at_once)
            notes = prune(tiny_model("llama"), count=1, tokens=10, contribution="influence").notes
        chosen.append(notes["neighbour_similarity"])
    assert chosen[0] == pytest.approx(chosen[1], abs=1e-6)
    states = [state[::3] for state in outputs_of(tiny_model("llama"))]
    expected = [float(torch.cosine_similarity(a, b).mean()) for a, b in itertools.pairwise(states)]
    assert chosen[0] == pytest.approx(expected, abs=1e-4)


def test_layers_that_do_nothing_are_one_group() -> None:
    model = tiny_model("llama", num_hidden_layers=6)
    for layer in anatomy(model).layers[2:5]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    context = prune(model, count=3)
    assert "1-4" in context.notes["groups"]
    assert 5 in context.kept_layers


def test_states_without_a_direction_name_the_layer() -> None:
    model = tiny_model("llama")
    anatomy(model).embeddings.weight.zero_()
    with pytest.raises(PrunebenchError, match="layer 0: its output is zero or not finite"):
        prune(model, count=1)
    assert len(anatomy(model).layers) == 4


def test_all_layers_can_stay_and_one_must() -> None:
    assert prune(tiny_model("llama"), count=0).kept_layers == [0, 1, 2, 3]
    assert len(prune(tiny_model("llama"), count=3).kept_layers) == 1
    with pytest.raises(PrunebenchError, match="all 4 layers would be removed"):
        prune(tiny_model("llama"), count=4)
