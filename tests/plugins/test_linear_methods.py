"""magnitude, wanda and random: the invariants of their definitions, on real modules."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, LinearStats, Method, PrunebenchError, anatomy
from prunebench.model import batches
from prunebench.plugin.host import load_plugins
from prunebench.plugin.registry import Registry
from tiny import FAMILIES, tiny_model

SHARES = [0.0, 0.3, 0.5, 0.9]


@cache
def registry() -> Registry:
    return load_plugins()


def build(name: str, **options: object) -> Method:
    cls = registry()["method"][name].value
    return cls(cls.Options.model_validate(options))


def prune(model, method: Method, seed: int = 0, windows: int = 2):
    ids = torch.randint(
        0, model.config.vocab_size, (windows, 16), generator=torch.Generator().manual_seed(5)
    )
    needs = method.needs_calibration or bool(getattr(method, "statistics", ()))
    context = Context(ids if needs else None, seed, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        method.prune(model, context)
    return context


def linears(model) -> dict[tuple[int, str], torch.nn.Linear]:
    parts = anatomy(model)
    return {
        (i, n): lin
        for i, layer in enumerate(parts.layers)
        for n, lin in parts.linears(layer).items()
    }


def stats(norm: torch.Tensor | None = None) -> LinearStats:
    return LinearStats(
        0, "x", torch.Generator().manual_seed(0), {} if norm is None else {"input_norm": norm}
    )


@pytest.mark.parametrize("name", ["random", "magnitude", "wanda"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_exact_sparsity_and_nothing_else_changed(
    name: str, family: str, sparsity: float | str
) -> None:
    model, dense = tiny_model(family), tiny_model(family)
    prune(model, build(name, sparsity=sparsity))
    pruned = {id(lin.weight) for lin in linears(model).values()}
    for key, linear in linears(model).items():
        original = linears(dense)[key].weight
        zero = linear.weight == 0
        assert torch.equal(linear.weight[~zero], original[~zero]), "survivors are bit-identical"
        if sparsity == "2:4":
            assert bool((zero.reshape(-1, 4).sum(1) == 2).all())
        elif name == "wanda":
            assert bool((zero.sum(1) == linear.in_features // 2).all())
        else:
            assert int(zero.sum()) == zero.numel() // 2
    for (path, ours), (_, theirs) in zip(
        model.named_parameters(), dense.named_parameters(), strict=True
    ):
        if id(ours) not in pruned:
            assert torch.equal(ours, theirs), path
    assert bool(torch.isfinite(model(torch.arange(8)[None]).logits).all())


@pytest.mark.parametrize("share", SHARES)
def test_magnitude_keeps_the_largest(share: float) -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(3))
    mask = build("magnitude", sparsity=share).mask(weight, stats())
    assert int(mask.sum()) == int(weight.numel() * share)
    if share > 0:
        assert weight.abs()[~mask].min() >= weight.abs()[mask].max()


@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12), st.floats(0, 0.99))
def test_magnitude_in_reference_mode_follows_the_threshold_rule(
    values: list[int], share: float
) -> None:
    weight = torch.tensor(values, dtype=torch.float32).view(3, 4)
    mask = build("magnitude", sparsity=share, mode="reference").mask(weight, stats())
    threshold = sorted(abs(v) for v in values)[int(12 * share)]
    assert mask.flatten().tolist() == [abs(v) <= threshold for v in values]
    assert int(mask.sum()) >= int(12 * share) + 1


def test_magnitude_in_reference_mode_removes_all_of_a_share_of_one() -> None:
    """An allocation may give a linear as much."""
    every = LinearStats(0, "x", torch.Generator(), sparsity=1.0)
    assert bool(build("magnitude", mode="reference").mask(torch.randn(3, 4), every).all())


def test_magnitude_does_not_depend_on_scale_and_is_idempotent() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    method = build("magnitude", sparsity=0.5)
    mask = method.mask(weight, stats())
    assert torch.equal(mask, method.mask(weight * 7.5, stats()))
    assert torch.equal(mask, method.mask(weight.masked_fill(mask, 0), stats()))


def test_wanda_on_equal_norms_is_magnitude_by_row() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    mask = build("wanda", sparsity=0.5).mask(weight, stats(torch.full((12,), 3.0)))
    for row, gone in zip(weight.abs(), mask, strict=True):
        assert row[~gone].min() >= row[gone].max()


def test_wanda_ignores_the_scale_of_rows_and_activations_and_drops_dead_inputs_first() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, norm = (
        torch.randn(8, 12, generator=generator),
        torch.rand(12, generator=generator) + 0.1,
    )
    method = build("wanda", sparsity=0.25)
    mask = method.mask(weight, stats(norm))
    assert torch.equal(mask, method.mask(weight * torch.arange(1, 9)[:, None], stats(norm)))
    assert torch.equal(mask, method.mask(weight, stats(norm * 11)))
    norm[5] = 0
    assert bool(method.mask(weight, stats(norm))[:, 5].all())


def variant_by_hand(
    scores: list[list[float]], sparsity: float
) -> tuple[list[list[bool]], float, float]:
    """The released variant from its description, row by row: mask, sparsity and alpha."""
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        mask = []
        for row in scores:
            gone, spent = [False] * len(row), 0.0
            for place in sorted(range(len(row)), key=lambda place: (row[place], place)):
                spent += row[place]
                gone[place] = spent <= alpha * sum(row)
            mask.append(gone)
        found = sum(map(sum, mask)) / sum(map(len, mask))
        if abs(found - sparsity) <= 0.001 or high - low < 0.001:
            return mask, found, alpha
        low, high = (low, alpha) if found > sparsity else (alpha, high)
        alpha = (low + high) / 2


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9, 0.97]))
def test_wandas_variant_is_that_of_the_released_code(seed: int, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 48, generator=generator) ** 3
    norm = torch.rand(48, generator=generator) + 0.1
    mask = build("wanda", sparsity=sparsity, use_variant=True).mask(weight, stats(norm))
    scores = (weight.abs() * norm).double().tolist()
    expected, _, _ = variant_by_hand(scores, sparsity)
    assert mask.tolist() == expected


def test_wandas_variant_reaches_the_sparsity_with_rows_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(64, 256, generator=generator) ** torch.tensor([1.0, 3.0]).repeat(32)[:, None]
    )
    mask = build("wanda", sparsity=0.5, use_variant=True).mask(weight, stats(torch.ones(256)))
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.001)
    by_row = mask.float().mean(dim=1)
    assert by_row[1::2].min() > by_row[::2].max() + 0.05  # heavier tails lose more
    for row, gone in zip(weight.abs(), mask, strict=True):
        assert row[~gone].min() >= row[gone].max()


def test_wandas_variant_starts_at_0_4_and_ends_at_0_8() -> None:
    """One row of ten equal scores: alpha 0.4 takes four; no alpha below 0.8 takes eight."""
    weight, norm = torch.ones(1, 10), torch.ones(10)

    def removed(sparsity: float) -> int:
        return int(
            build("wanda", sparsity=sparsity, use_variant=True).mask(weight, stats(norm)).sum()
        )

    assert removed(0.4) == 4
    assert removed(0.7) == 7
    assert removed(0.95) == 7
    assert removed(0.0) == 0


def test_wandas_variant_removes_sums_that_are_exactly_the_budget() -> None:
    """Four of ten ones are 0.4 of their sum. Behind 0.4, the other row loses a fifth at 0.4001."""
    weight = torch.tensor([[1.0] * 10, [8.002] * 5 + [11.998] * 5])
    mask = build("wanda", sparsity=0.4, use_variant=True).mask(weight, stats(torch.ones(10)))
    assert mask.sum(dim=1).tolist() == [4, 4]


def test_wandas_variant_leaves_n_m_as_it_is() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    plain = build("wanda", sparsity="2:4").mask(weight, stats(torch.ones(8)))
    variant = build("wanda", sparsity="2:4", use_variant=True)
    assert torch.equal(variant.mask(weight, stats(torch.ones(8))), plain)


@pytest.mark.parametrize("sparsity", [0.5, 0.97])
def test_wandas_variant_notes_how_far_it_is_from_the_sparsity(sparsity: float) -> None:
    method = build("wanda", sparsity=sparsity, use_variant=True)
    for family in ("llama", "opt", "llama"):  # each model has its own
        model = tiny_model(family)
        found = prune(model, method).notes["largest_sparsity_difference"]
        worst = max(
            abs(float((linear.weight == 0).float().mean()) - sparsity)
            for linear in linears(model).values()
        )
        assert found == pytest.approx(worst, abs=1e-7)
    assert "largest_sparsity_difference" not in prune(tiny_model("llama"), build("wanda")).notes


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_wanda_is_optimal_if_inputs_are_uncorrelated(seed: int) -> None:
    """If X X^T is diagonal no mask of the same size has a smaller error (brute force on a row)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.diag(
        torch.rand(6, generator=generator) + 0.1
    ).double()  # [in, tokens], orthogonal features
    weight = torch.randn(1, 6, generator=generator).double()
    mask = build("wanda", sparsity=0.5).mask(weight, stats(inputs.norm(dim=1).float()))

    def error(gone: tuple[int, ...]) -> float:
        return float((weight[:, list(gone)] @ inputs[list(gone)]).norm())

    best = min(error(gone) for gone in itertools.combinations(range(6), 3))
    assert error(tuple(mask[0].nonzero().flatten().tolist())) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_a_pattern_that_does_not_divide_names_the_linear(name: str) -> None:
    model = tiny_model("llama")
    features = linears(model)[0, "self_attn.q_proj"].in_features
    of = next(m for m in range(3, 64) if features % m)
    with pytest.raises(
        PrunebenchError,
        match=rf"layer 0, self_attn\.q_proj: groups of {of} do not divide {features}",
    ):
        prune(model, build(name, sparsity=f"2:{of}"))


def test_random_follows_its_seed() -> None:
    first, same, other = (tiny_model("llama") for _ in range(3))
    for model, seed in ((first, 1), (same, 1), (other, 2)):
        prune(model, build("random", sparsity=0.5), seed=seed)
    key = next(iter(linears(first)))
    assert torch.equal(linears(first)[key].weight, linears(same)[key].weight)
    assert not torch.equal(linears(first)[key].weight, linears(other)[key].weight)


def test_dense_changes_nothing() -> None:
    model, dense = tiny_model("opt"), tiny_model("opt")
    prune(model, build("dense"))
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1:4", "3:4", "5:8"])
def test_magnitude_in_reference_mode_has_the_same_groups_if_there_are_no_ties(
    pattern: str,
) -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    reference = build("magnitude", sparsity=pattern, mode="reference").mask(weight, stats())
    assert torch.equal(reference, build("magnitude", sparsity=pattern).mask(weight, stats()))
    keep, of = map(int, pattern.split(":"))
    assert set(reference.view(-1, of).sum(1).tolist()) == {of - keep}


@pytest.mark.parametrize("sparsity", [0.5, "1:4"])
def test_wanda_of_several_batches_is_that_of_all_tokens(
    sparsity: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """|w| times the root of the sum of squared inputs of all windows, lowest of each row."""
    monkeypatch.setitem(batches.BATCH_TOKENS, "cpu", 32)  # batches of 2, 2 and 1 windows
    model, twin = tiny_model("llama"), tiny_model("llama")
    prune(model, build("wanda", sparsity=sparsity), windows=5)
    ids = torch.randint(0, 320, (5, 16), generator=torch.Generator().manual_seed(5))
    seen: dict[str, torch.Tensor] = {}
    first = {name: lin for (layer, name), lin in linears(twin).items() if layer == 0}
    for name, linear in first.items():
        linear.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1)})
        )
    twin(ids)
    for name, linear in first.items():
        score = linear.weight.abs().double() * seen[name].double().square().sum(0).sqrt()
        of = score.shape[1] if sparsity == 0.5 else 4
        gone = of // 2 if sparsity == 0.5 else 3
        order = score.view(-1, of).argsort(dim=1, stable=True)[:, :gone]
        expected = torch.zeros(score.numel() // of, of, dtype=torch.bool)
        expected.scatter_(1, order, value=True)
        pruned = linears(model)[0, name].weight == 0
        assert torch.equal(pruned, expected.view_as(score)), name


def test_random_draws_each_weights_number_from_the_cells_generator() -> None:
    weight = torch.ones(5, 8)
    score = build("random", sparsity=0.5).score(weight, stats())
    expected = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(score, expected)
