"""RIA: its score and thresholds from their definitions, permutations by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import LinearStats, Pattern, PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_context
from prunebench_plugins.ria_permutation import improved, reallocated
from tiny import tiny_model

RIA = load_plugins()["method"]["ria"].value
PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8)]


def build(**options: object):
    return RIA(RIA.Options.model_validate(options))


def stats(norm: torch.Tensor, name: str = "self_attn.q_proj", **more: torch.Tensor) -> LinearStats:
    return LinearStats(0, name, torch.Generator(), {"input_norm": norm, **more})


def some(seed: int, rows: int = 6, columns: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns] and an input norm [columns]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, torch.rand(columns, generator=generator) + 0.1


def prune(model, **options: object):
    context = tiny_context(model)
    with torch.no_grad():
        build(**options).prune(model, context)
    return context


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_score_is_the_share_of_row_and_column_times_a_power_of_the_norm(
    seed: int, a: float
) -> None:
    weight, norm = some(seed, rows=3, columns=4)
    found = build(a=a).score(weight, stats(norm))
    for i, j in itertools.product(range(3), range(4)):
        size = float(weight[i, j].abs())
        column = sum(float(weight[k, j].abs()) for k in range(3))
        row = sum(float(weight[i, k].abs()) for k in range(4))
        wanted = (size / column + size / row) * float(norm[j]) ** a
        assert float(found[i, j]) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_clean_removes_the_exact_count_and_reference_one_more(seed: int, share: float) -> None:
    weight, norm = some(seed)
    clean = build(sparsity=share).mask(weight, stats(norm))
    released = build(sparsity=share, mode="reference").mask(weight, stats(norm))
    count = int(weight.numel() * share)
    assert int(clean.sum()) == count
    assert int(released.sum()) == count + 1
    score = build().score(weight, stats(norm))
    assert released.equal(score <= score.flatten().sort().values[count])
    assert bool((released | ~clean).all()), "what clean removes, reference removes too"


def test_ties_go_by_index_as_in_wanda() -> None:
    weight = torch.ones(4, 8)
    mask = build(sparsity=0.25).mask(weight, stats(torch.ones(8)))
    assert mask.flatten().nonzero().flatten().tolist() == list(range(8))
    by_row = build(sparsity=0.25, per_outneuron=True).mask(weight, stats(torch.ones(8)))
    assert by_row.equal(torch.tensor([[True] * 2 + [False] * 6] * 4))


def test_by_row_every_row_loses_the_same_count() -> None:
    weight, norm = some(1)
    mask = build(sparsity=0.4, per_outneuron=True).mask(weight, stats(norm))
    assert mask.sum(dim=1).tolist() == [6] * 6
    assert build(sparsity=0.4).mask(weight, stats(norm)).sum(dim=1).unique().numel() > 1


def test_a_column_of_zeros_is_removed_first_and_is_the_last_in_reference() -> None:
    weight, norm = some(2)
    weight[:, 3] = 0
    assert bool(build(sparsity=0.1).mask(weight, stats(norm))[:, 3].all())
    released = build(sparsity=0.1, mode="reference").mask(weight, stats(norm))
    assert int(released.sum()) == int(weight.numel() * 0.1) + 1
    assert not bool(released[:, 3].any())  # 0 / 0 is not below any threshold


@settings(max_examples=20)
@given(
    st.integers(0, 10_000),
    st.sampled_from(PATTERNS),
    st.sampled_from(["sum", "retained_degree_unstructured", "retained_degree_per_outneuron"]),
)
def test_channels_are_dealt_in_turns_from_both_ends(
    seed: int, pattern: Pattern, importance: str
) -> None:
    weight, norm = some(seed)
    score = build().score(weight, stats(norm))
    index = reallocated(score, pattern, importance).tolist()  # type: ignore[arg-type]
    worth = score.sum(dim=0)
    if importance != "sum":
        by = "row" if importance.endswith("outneuron") else "matrix"
        flat = score if by == "row" else score.reshape(1, -1)
        count = int(flat.shape[1] * pattern.sparsity)
        limit = flat.sort(dim=1).values[:, count - 1 : count]
        worth = (score * (flat > limit).view_as(score)).sum(dim=0)
    order = sorted(range(16), key=lambda channel: float(worth[channel]))
    groups = 16 // pattern.of
    for place, channel in enumerate(index):
        group, turn = divmod(place, pattern.of)
        card = turn * groups + (groups - 1 - group if turn % 2 else group)
        assert channel == order[card]


def kept(score: torch.Tensor, index: torch.Tensor, pattern: Pattern) -> float:
    """The sum of the scores that N:M keeps if channels are in this order."""
    groups = score[:, index].reshape(-1, pattern.of)
    return float(groups.topk(pattern.keep, dim=1).values.double().sum())


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(PATTERNS), st.sampled_from([1, 2, 16]))
def test_an_assignment_never_keeps_less(seed: int, pattern: Pattern, blocks: int) -> None:
    weight, norm = some(seed)
    score = build().score(weight, stats(norm))
    before = reallocated(score, pattern, "sum")
    after = improved(score, before, pattern, blocks)
    assert sorted(after.tolist()) == list(range(16))
    assert kept(score, after, pattern) >= kept(score, before, pattern) - 1e-5


def test_the_first_assignment_is_the_best_of_all() -> None:
    """By brute force: with one channel free in each of 3 groups, no exchange keeps more."""
    pattern = Pattern(2, 4)
    weight, norm = some(5, columns=12)
    score = build().score(weight, stats(norm))
    index = torch.arange(12)
    for place in range(4):  # the assignments of `improved`, one after the other
        best = max(
            (
                index.view(3, 4).clone().index_copy_(1, torch.tensor([place]), column)
                for column in (
                    index.view(3, 4)[list(order), place][:, None]
                    for order in itertools.permutations(range(3))
                )
            ),
            key=lambda groups: kept(score, groups.flatten(), pattern),
        )
        index = best.flatten()
    assert improved(score, torch.arange(12), pattern, 1).tolist() == index.tolist()


def test_blocks_keep_channels_apart() -> None:
    pattern = Pattern(2, 4)
    weight, norm = some(6, columns=32)
    score = build().score(weight, stats(norm))
    start = torch.arange(32)
    halves = improved(score, start, pattern, 2).view(2, 16)
    assert sorted(halves[0].tolist()) == list(range(16))
    assert improved(score, start, pattern, 1).tolist() != halves.flatten().tolist()


@pytest.mark.parametrize(
    ("name", "blocks"), [("self_attn.k_proj", 4), ("mlp.gate_proj", 8), ("fc2", 16)]
)
def test_fast_has_the_blocks_of_the_released_code(
    name: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recording(score, index, pattern, number):
        asked.append(number)
        return index

    monkeypatch.setattr("prunebench_plugins.ria.improved", recording)
    weight, norm = some(7)
    for fast in (True, False):
        method = build(sparsity="2:4", reallocation=True, lsa=True, fast=fast)
        method.mask(weight, stats(norm, name))
    assert asked == [blocks, 1]


def test_a_permuted_mask_has_the_pattern_in_its_own_order_and_keeps_more() -> None:
    weight, norm = some(8, rows=16, columns=32)
    norm[:16] *= 10  # strong channels side by side
    method = build(sparsity="2:4", reallocation=True)
    mask = method.mask(weight, stats(norm))
    score = method.score(weight, stats(norm))
    index = reallocated(score, Pattern(2, 4), "sum")
    assert bool((mask[:, index].reshape(-1, 4).sum(dim=1) == 2).all())
    assert not bool((mask.reshape(-1, 4).sum(dim=1) == 2).all())
    plain = build(sparsity="2:4").mask(weight, stats(norm))
    assert bool((plain.reshape(-1, 4).sum(dim=1) == 2).all())
    assert float(score[~mask].sum()) > float(score[~plain].sum())
    assert method.retained == [
        pytest.approx([float(score[~each].sum() / score.sum()) for each in (plain, mask)])
    ]


def test_the_notes_say_that_the_stored_order_breaks_the_pattern() -> None:
    notes = prune(tiny_model("llama"), sparsity="2:4", reallocation=True, lsa=True).notes
    assert notes["retained_score"]["permuted"] > notes["retained_score"]["plain"]
    assert "as stored, rows break it" in notes["stored_order"]
    assert "stored_order" not in prune(tiny_model("llama"), sparsity="2:4").notes


def test_reconstruction_keeps_the_mask_and_makes_up_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    weights = [torch.randn(5, 16, generator=generator) for _ in range(2)]
    hessian = inputs.t() @ inputs
    found = {"input_norm": hessian.diagonal().sqrt(), "hessian": hessian}
    plain, updated = ([weight.clone() for weight in weights] for _ in range(2))
    for target, options in ((plain, {}), (updated, {"reconstruction": True})):
        each = LinearStats(0, "x", generator, {name: one.clone() for name, one in found.items()})
        build(**options).prune_group(target, [each, each])
    for dense, zeroed, better in zip(weights, plain, updated, strict=True):
        assert (zeroed == 0).equal(better == 0)
        assert (better - dense).matmul(inputs.t()).norm() < (zeroed - dense).matmul(
            inputs.t()
        ).norm()
        assert not better.equal(zeroed)


def test_relative_importance_alone_needs_no_text() -> None:
    assert not RIA.needs_calibration_for(build(a=0).options)
    assert RIA.needs_calibration_for(build(a=0, reconstruction=True).options)
    assert RIA.needs_calibration_for(build().options)
    model = tiny_model("llama")
    context = tiny_context(model)
    context.calibration = None
    with torch.no_grad():
        build(a=0).prune(model, context)
    weight = tiny_model("llama").model.layers[0].mlp.up_proj.weight
    mask = build(a=0).mask(weight, stats(torch.zeros(0)))
    assert (model.model.layers[0].mlp.up_proj.weight == 0).equal(mask)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"a": -1}, "greater than or equal to 0"),
        ({"importance_score": "max"}, "retained_degree_unstructured"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        build(**options)


def test_options_without_effect_are_named() -> None:
    idle = build(sparsity=0.5, reallocation=True, lsa=True).options.without_effect()
    assert set(idle) == {"reallocation"}
    idle = build(sparsity="2:4", per_outneuron=True, lsa=True, fast=True).options.without_effect()
    assert set(idle) == {"per_outneuron", "importance_score", "lsa", "mode"}


def test_a_pattern_that_does_not_divide_names_the_linear() -> None:
    with pytest.raises(PrunebenchError, match=r"layer 0, self_attn\.q_proj: groups of 7 do not"):
        prune(tiny_model("llama"), sparsity="3:7", reallocation=True)
