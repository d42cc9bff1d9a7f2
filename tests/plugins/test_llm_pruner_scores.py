"""LLM-Pruner's importance vectors and group scores, compared with naive definitions."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench import Block, anatomy
from prunebench_plugins import llm_pruner_scores
from prunebench_plugins.llm_pruner_groups import members
from prunebench_plugins.llm_pruner_scores import (
    Member,
    group_scores,
    norm_vector,
    norm_vectors,
    taylor_vector,
    taylor_vectors,
)
from tiny import FAMILIES, tiny_model

IDS = torch.randint(0, 320, (5, 200), generator=torch.Generator().manual_seed(2))[:, :100]
SIZES = st.integers(1, 6)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(model, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of transformers' own mean loss over the windows, for every parameter."""
    model = copy.deepcopy(model).requires_grad_(requires_grad=True)
    with torch.enable_grad():
        model(input_ids=windows, labels=windows).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "taylor"),
    [(family, "param_mix") for family in FAMILIES]
    + [("llama", taylor) for taylor in ("vectorize", "param_first", "param_second")],
)
def test_vectors_are_those_of_the_whole_batch_s_gradient(family: str, taylor: str) -> None:
    model = tiny_model(family)
    parts = anatomy(model)
    first = gradients(model, IDS)
    second = [gradients(model, window[None]) for window in IDS]
    wanted = [member for block in parts.blocks for member in members(parts, block)]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: list[int] = []
    with torch.no_grad():
        vectors = taylor_vectors(model, wanted, IDS, taylor, seen.append)
    assert seen[-1] == 5
    for member, vector in zip(wanted, vectors, strict=True):
        name = names[id(member.weight)]
        g = first[name]
        f = torch.stack([each[name].square() for each in second]).mean(0)
        salience = {
            "vectorize": member.weight * g,
            "param_first": (member.weight * g).abs(),
            "param_second": (member.weight * f * member.weight).abs(),
            "param_mix": (member.weight * g - member.weight * f * member.weight / 2).abs(),
        }[taylor]
        expected = salience.sum(1 - member.dim).abs()
        torch.testing.assert_close(
            vector, expected, rtol=1e-3, atol=1e-6 * float(expected.max()) + 1e-9
        )


@pytest.mark.parametrize("taylor", ["param_first", "param_second"])
def test_several_passes_give_the_vectors_of_one(taylor: str) -> None:
    model = tiny_model("llama")
    wanted = list(members(anatomy(model), Block(1, "attention")))
    repeated = IDS.repeat(4, 1)[:17]  # 5, 5, 5 and 2 windows a pass
    seen: list[int] = []
    vectors = taylor_vectors(model, wanted, repeated, taylor, seen.append)
    assert seen == [5, 10, 15, 17]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    first, each = gradients(model, repeated), [gradients(model, window[None]) for window in IDS]
    for member, vector in zip(wanted, vectors, strict=True):
        name = names[id(member.weight)]
        second = sum(each[window % 5][name].square() for window in range(17)) / 17
        salience = (
            (member.weight * first[name]).abs()
            if taylor == "param_first"
            else member.weight.square() * second
        )
        expected = salience.sum(1 - member.dim)
        torch.testing.assert_close(vector, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tied_embeddings_get_the_gradient_of_both_uses(family: str) -> None:
    model = tiny_model(family)
    wanted = list(members(anatomy(model), None))
    assert len({id(member.weight) for member in wanted}) == len(wanted)
    found = taylor_vectors(model, wanted, IDS, "param_first", lambda _done: None)
    vectors = {member.name: vector for member, vector in zip(wanted, found, strict=True)}
    g = gradients(model, IDS)["model.embed_tokens.weight"]
    expected = (model.model.embed_tokens.weight * g).abs().sum(0)
    torch.testing.assert_close(vectors["embed_tokens"], expected, rtol=1e-3, atol=1e-8)
    assert ("the output embeddings" in vectors) == (family == "qwen2")


@given(SIZES, SIZES, st.integers(0, 1), st.integers(0, 999))
def test_the_absolute_value_of_a_sum_is_at_most_the_sum_of_absolute_values(
    rows, columns, dim, seed
) -> None:
    w, g = drawn(seed, rows, columns), drawn(seed + 1, rows, columns)
    whole = taylor_vector(w, g, None, "vectorize", dim)
    parts = taylor_vector(w, g, None, "param_first", dim)
    assert whole.shape == parts.shape == ((rows, columns)[dim],)
    assert bool((whole <= parts * (1 + 1e-5) + 1e-7).all())


@given(SIZES, SIZES, st.integers(0, 1), st.integers(0, 999))
def test_second_order_with_equal_curvature_everywhere_is_the_squared_norm(
    rows, columns, dim, seed
) -> None:
    w = drawn(seed, rows, columns)
    second = taylor_vector(w, None, torch.ones_like(w), "param_second", dim)
    torch.testing.assert_close(second, norm_vector(w, 2, dim))
    mixed = taylor_vector(w, torch.zeros_like(w), torch.ones_like(w), "param_mix", dim)
    torch.testing.assert_close(mixed, second / 2)


def test_norms_are_sums_over_rows_and_columns() -> None:
    w = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert norm_vector(w, 1, 0).tolist() == [3.0, 3.5]
    assert norm_vector(w, 2, 1).tolist() == [10.0, 4.25]
    member = next(members(anatomy(tiny_model("opt")), Block(0, "mlp")))
    assert norm_vectors([member], 1)[0].shape == (80,)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", [37, 64]), ("mean", [37 / 3, 64 / 3]), ("max", [21, 26]), ("prod", [280, 2160])],
)
def test_members_are_reduced_channel_by_channel_then_over_the_head(
    reduction: str, expected: list[float]
) -> None:
    """Two KV heads of two channels, two query heads each."""
    q = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])  # over the query heads: 1 + 3, 2 + 4; 5 + 7, 6 + 8
    k = torch.tensor([5.0, 10, 10, 5])
    v = torch.tensor([11.0, 1, 11, 12])
    assert group_scores([q, k, v], 2, 2, reduction=reduction).tolist() == pytest.approx(expected)
    misaligned = group_scores([q], 2, 2, reduction="sum", misaligned=True)
    assert misaligned.tolist() == [1 + 5 + 2 + 6, 3 + 7 + 4 + 8]


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["sum", "mean", "max", "prod"]),
    st.integers(0, 999),
)
def test_folding_agrees_without_grouped_queries(
    groups: int, channels: int, reduction: str, seed: int
) -> None:
    vectors = [drawn(seed + place, groups * channels).abs() for place in range(4)]
    clean, released = (
        group_scores(vectors, groups, channels, reduction=reduction, misaligned=misaligned)
        for misaligned in (False, True)
    )
    assert torch.equal(clean, released)
    # The same weights with query, key and value in one matrix, head by head.
    fused = torch.stack([vector.view(groups, channels) for vector in vectors[:3]], dim=1).reshape(
        -1
    )
    rows = torch.arange(len(fused)).view(groups, 3, channels)
    weight = torch.nn.Parameter(torch.empty(0))
    parts = Member("", weight, 0, tuple(rows[:, each].reshape(-1) for each in range(3)))
    together = group_scores(
        [*parts.split(fused), vectors[3]], groups, channels, reduction=reduction
    )
    torch.testing.assert_close(together, clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("taylor", ["vectorize", "param_first", "param_second", "param_mix"])
def test_half_precision_gives_the_scores_of_float32(taylor: str, dtype: torch.dtype) -> None:
    """Without a loss scale most gradients of this model would be zero in float16."""
    half = tiny_model("llama")
    half.lm_head.weight.mul_(0.003)
    half.to(dtype)
    full = copy.deepcopy(half).float()
    windows = IDS.repeat(8, 1)

    def scores(model) -> torch.Tensor:
        block = Block(1, "mlp")
        wanted = list(members(anatomy(model), block))
        vectors = taylor_vectors(model, wanted, windows, taylor, lambda _done: None)
        return group_scores(vectors, 80, 1, reduction="sum")

    ours, exact = scores(half), scores(full)
    # Rounding of single products: a sum before the absolute value cancels, others do not.
    each = 0.25 if taylor == "vectorize" else 0.05
    torch.testing.assert_close(ours, exact, rtol=each, atol=each * float(exact.mean()))
    assert float(ours.sum()) == pytest.approx(float(exact.sum()), rel=0.01)


def test_an_overflow_in_float16_is_computed_again_with_a_smaller_factor() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(2000)  # gradients of the scaled loss exceed 65504
        model.lm_head.weight.clamp_(-4e4, 4e4)
        model.model.norm.weight.mul_(1e-3)
    wanted = list(members(anatomy(model), Block(0, "mlp")))
    full = taylor_vectors(model, wanted, IDS, "param_first", lambda _done: None)
    model.half()
    wanted = list(members(anatomy(model), Block(0, "mlp")))
    seen: list[int] = []
    half = taylor_vectors(model, wanted, IDS, "param_first", seen.append)
    assert seen[:2] == [5, 5]
    for ours, exact in zip(half, full, strict=True):
        assert float(ours.sum()) == pytest.approx(float(exact.sum()), rel=0.02)


def test_as_many_weights_as_fit_are_scored_at_once(monkeypatch) -> None:
    monkeypatch.setattr(llm_pruner_scores, "CHUNK", 350)
    found = list(llm_pruner_scores._parts(torch.empty(10, 100)))
    assert found == [slice(start, start + 3) for start in (0, 3, 6, 9)]
    wide = list(llm_pruner_scores._parts(torch.empty(2, 400)))
    assert wide == [slice(0, 1), slice(1, 2)]


def test_dropout_is_switched_off_while_scores_are_computed() -> None:
    model = tiny_model("opt", dropout=0.5)
    wanted = list(members(anatomy(model), Block(1, "mlp")))
    usual = taylor_vectors(model, wanted, IDS, "param_first", lambda _done: None)
    model.train()
    found = taylor_vectors(model, wanted, IDS, "param_first", lambda _done: None)
    assert all(map(torch.equal, found, usual))
    assert model.training


def test_a_loss_scale_that_is_too_large_is_a_sixteenth_the_next_time(monkeypatch) -> None:
    """As little smaller as need be: the smallest gradients are lost first."""
    scales: list[float] = []
    run = llm_pruner_scores._run

    def spy(model, sweep, *rest) -> None:
        scales.append(sweep.scale)
        run(model, sweep, *rest)
        if len(scales) < 3:
            sweep.vectors[0].fill_(float("inf"))

    monkeypatch.setattr(llm_pruner_scores, "_run", spy)
    model = tiny_model("llama").half()
    wanted = list(members(anatomy(model), Block(1, "mlp")))
    taylor_vectors(model, wanted, IDS.repeat(2, 1), "param_first", lambda _done: None)
    assert scales == [2.0**16 * 2, 2.0**12 * 2, 2.0**8 * 2]  # two passes of five windows
