"""AlphaPruning: known spectra, the released estimator word by word, budgets, bad spectra, cache."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench import Context, PrunebenchError, pattern_of
from prunebench.model import tensor_folder
from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.host import load_plugins
from prunebench_plugins import alphapruning
from prunebench_plugins.alphapruning import scaled
from prunebench_plugins.alphapruning_fit import (
    Fit,
    _peak,
    _starts,
    eigenvalues,
    power_law,
    without_zeros,
)
from prunebench_plugins.divided_sparsity import capped, of_groups, patterns
from tiny import tiny_model

KIND = load_plugins().registered("allocation")["alphapruning"]


def context_of(model) -> Context:
    return Context(None, 0, list(range(4)))  # no calibration: it looks at weights only


def shares_of(model, sparsity: float = 0.6, **options):
    context = context_of(model)
    with torch.no_grad():
        found = KIND(KIND.Options.model_validate(options)).shares(model, sparsity, context)
    return found, context.notes


def spectrum(values, rows: int = 0) -> torch.Tensor:
    """A square weight with these singular values."""
    generator = torch.Generator().manual_seed(3)
    size = len(values)
    left, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return left @ torch.diag(torch.as_tensor(values, dtype=torch.float32)) @ right


def released(eigs: np.ndarray, metric: str, bins: int = 100, pos: float = 2) -> tuple[float, float]:
    """alpha and KS distance, one candidate after the other, from the description of the code."""
    logs, count = np.log(eigs), len(eigs)

    def law(i: int) -> tuple[float, float]:
        n = count - i
        alpha = 1 + n / (logs[i:].sum() - n * logs[i])
        gap = np.abs(1 - (eigs[i:] / eigs[i]) ** (1 - alpha) - np.arange(n) / n).max()
        return alpha, gap if alpha > 1 else 1.0

    if metric == "alpha_mid":
        return law(int(count / pos))
    low, high = -math.inf, math.inf
    if metric == "alpha_peak":
        counts, edges = np.histogram(np.log10(eigs), bins)
        peak = 10 ** edges[counts.argmax()]
        low, high = math.log10(0.95 * peak), 1.5 * peak
    found = [law(i) for i in range(count - 1) if low <= eigs[i] <= high]
    return min(found, key=lambda one: one[1]) if found else (0.0, 1.0)


@settings(max_examples=15)
@given(st.integers(8, 60), st.floats(0.3, 3), st.floats(0.01, 100), st.integers(0, 1000))
def test_the_fit_is_that_of_the_released_loop(
    count: int, power: float, scale: float, seed: int
) -> None:
    values = scale * (1 + np.random.default_rng(seed).pareto(power, count))
    values = np.sort(values).astype(np.float32)
    for metric in ("alpha_peak", "alpha_mid", "alpha"):
        law = power_law(torch.from_numpy(values), Fit(metric, 100, 2.0, released=True))
        alpha, distance = released(values.astype(np.float64), metric)
        assert law.distance == pytest.approx(distance, abs=1e-5), metric
        if metric == "alpha_mid":
            assert law.alpha == pytest.approx(alpha, rel=1e-3)
            clean = power_law(torch.from_numpy(values), Fit(metric, 100, 2.0, released=False))
            assert clean.alpha == pytest.approx(alpha, rel=1e-5)


def test_released_exponents_are_rounded_as_there() -> None:
    """float32 leaves few digits of the small difference of two large sums."""
    values = torch.linspace(1e6, 1.02e6, 50)
    logs = values.log()
    law, clean = (
        power_law(values, Fit("alpha_mid", 100, 2.0, released)) for released in (True, False)
    )
    assert law.alpha == float(1 + 25.0 / (logs[25:].sum() - 25.0 * logs[25]))
    assert 1e-5 < abs(law.alpha / clean.alpha - 1) < 0.05


def test_a_pareto_spectrum_has_its_exponent() -> None:
    ranks = (np.arange(1000) + 0.5) / 1000
    values = torch.from_numpy(((1 - ranks) ** (-1 / 1.5)).astype(np.float32))  # p(x) ~ x^-2.5
    for metric in ("alpha_mid", "alpha"):
        law = power_law(values, Fit(metric, 100, 2.0, released=False))
        assert law.alpha == pytest.approx(2.5, rel=0.03), metric
        assert law.distance < 0.01


def test_the_released_lower_bound_is_a_logarithm() -> None:
    """At a peak of 10 the paper looks from 9.5 on, the released code from log10(9.5) on."""
    values = torch.cat(
        [torch.linspace(1, 9, 40), torch.linspace(10, 10.2, 30), torch.tensor([90.0])]
    )
    peak = float(_peak(values, 20))
    clean, quirk = (
        _starts(values, Fit("alpha_peak", 20, 2.0, released)).tolist() for released in (False, True)
    )
    assert clean == [i for i in range(70) if 0.95 * peak <= values[i] <= 1.5 * peak]
    assert quirk == [i for i in range(70) if values[i] <= 1.5 * peak]
    assert len(quirk) > len(clean) > 0


def test_without_a_candidate_the_next_eigenvalue_begins_the_tail() -> None:
    """The peak is about 14, and no eigenvalue is between 0.95 and 1.5 times that."""
    values = torch.tensor([0.5, 100.0, 300.0, 400.0])
    clean = power_law(values, Fit("alpha_peak", 2, 2.0, released=False))
    assert clean.alpha == pytest.approx(1 + 3 / (math.log(3) + math.log(4)), rel=1e-6)
    # The released code returns the zero that its array began with.
    assert power_law(values, Fit("alpha_peak", 2, 2.0, released=True)) == (0.0, 1.0)


def test_scaling_the_weights_changes_no_middle_exponent() -> None:
    weight = tiny_model("llama").model.layers[0].mlp.up_proj.weight.detach()
    fit = Fit("alpha_mid", 100, 2.0, released=False)
    one, other = (power_law(eigenvalues(weight * factor), fit).alpha for factor in (1, 32))
    assert one == pytest.approx(other, rel=1e-5)


SIZED = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 10**6)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(SIZED, st.floats(0, 0.95), st.floats(0, 1))
def test_the_mean_over_the_weights_is_exact_and_a_higher_exponent_loses_more(
    sized: list[tuple[float, int]], sparsity: float, epsilon: float
) -> None:
    alphas, sizes = [one for one, _ in sized], [size for _, size in sized]
    found = scaled(alphas, sizes, sparsity, epsilon * 0.999)
    highest = max(0.99, sparsity)
    limited = capped(found, sizes, highest)
    for some in (found, limited):
        mean = sum(one * size for one, size in zip(some, sizes, strict=True)) / sum(sizes)
        assert mean == pytest.approx(sparsity, abs=1e-9)
        by_alpha = [some[i] for i in sorted(range(len(alphas)), key=alphas.__getitem__)]
        assert all(low <= high + 1e-12 for low, high in pairwise(by_alpha))
    assert max(limited) <= highest + 1e-12
    assert min(limited) >= 0
    if max(found) <= highest:
        assert limited == found


def test_a_layer_without_linears_is_left_out() -> None:
    assert of_groups([["a"], [], ["b", "c"]], [0.2, 0.4], 0.3) == [0.2, 0.3, 0.4]


def test_what_is_above_the_limit_goes_to_the_others_in_proportion() -> None:
    assert capped([1.2, 0.6, 0.3], [1, 1, 1], 0.9) == pytest.approx([0.9, 0.8, 0.4])
    # raising the second carries it over the limit too
    assert capped([1.2, 0.85, 0.25], [1, 1, 1], 0.9) == pytest.approx([0.9, 0.9, 0.5])


@pytest.mark.parametrize("mode", ["clean", "reference"])
def test_shares_are_mapped_by_block_and_by_linear(mode: str) -> None:
    model = tiny_model("llama")
    by_block, notes = shares_of(model, epsilon=0.2, metric="alpha_mid", mode=mode)
    alphas = notes["alphas"]
    means = [np.mean([a for p, a in alphas.items() if f".{i}." in p]) for i in range(4)]
    low, high = min(means), max(means)
    ranks = np.array([(one - low) / (high - low) * 0.4 + 0.8 for one in means])
    assert by_block == pytest.approx(ranks * 0.6 / ranks.mean())
    by_linear, _ = shares_of(model, epsilon=0.2, metric="alpha_mid", mapping_type="layer_wise")
    assert list(by_linear) == list(alphas)
    assert max(by_linear, key=by_linear.get) == max(alphas, key=alphas.get)
    assert max(by_linear.values()) / min(by_linear.values()) == pytest.approx(1.2 / 0.8)


def test_no_epsilon_is_uniform_and_looks_at_nothing() -> None:
    found, notes = shares_of(tiny_model("llama"), epsilon=0)
    assert found == [0.6] * 4
    assert notes == {}


def heavy(model) -> None:
    """One layer has a far lighter tail than the others."""
    for layer in model.model.layers[1:]:
        for parameter in layer.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.sign() * parameter.abs() ** 3)


def test_a_share_above_one_is_capped_and_the_released_mode_says_what_it_was() -> None:
    with torch.no_grad():
        model = tiny_model("llama")
        heavy(model)
    clean, notes = shares_of(model, 0.9, epsilon=0.5, metric="alpha_mid")
    assert max(clean) == 0.99
    assert sum(clean) / 4 == pytest.approx(0.9)
    assert max(notes["uncapped_shares"]) > 1
    quirk, notes = shares_of(model, 0.9, epsilon=0.5, metric="alpha_mid", mode="reference")
    assert max(quirk) == 1
    assert sum(quirk) / 4 < 0.9 - 1e-3
    assert sum(notes["uncapped_shares"]) / 4 == pytest.approx(0.9)


@pytest.mark.parametrize("family", ["qwen3", "opt", "gpt_neox"])
def test_linears_of_other_families_have_exponents_too(family: str) -> None:
    model = tiny_model(family)
    context = context_of(model)
    kind = KIND(KIND.Options(mapping_type="layer_wise"))
    with torch.no_grad():
        found = allocate(kind, model, 0.5, context)
    assert list(found) == list(context.linears(model))
    assert context.notes["allocation"]["mean_share"] == pytest.approx(0.5)


@pytest.mark.parametrize("mapping", ["block_wise", "layer_wise"])
def test_patterns_stay_within_the_budget_and_keep_a_weight(mapping: str) -> None:
    with torch.no_grad():
        model = tiny_model("llama")
        heavy(model)
        context = context_of(model)
        kind = KIND(KIND.Options(mapping_type=mapping, epsilon=0.6, metric="alpha_mid"))
        found = allocate(kind, model, "2:8", context)
    kept = {path: pattern_of(one).keep for path, one in found.items()}
    assert len(set(kept.values())) > 1
    assert min(kept.values()) >= 1
    assert context.notes["allocation"]["mean_share"] == pytest.approx(0.75, abs=0.05)
    assert context.notes["allocation"]["mean_share"] >= 0.75 - 1e-9
    if mapping == "block_wise":
        by_layer = {(path.split(".")[2], keep) for path, keep in kept.items()}
        assert len(by_layer) == 4


def test_patterns_of_exact_shares_are_those_shares() -> None:
    model = tiny_model("llama")
    sizes = dict.fromkeys(context_of(model).linears(model), 1)
    found = patterns(model, [0.7, 0.7, 0.7, 0.7], sizes, pattern_of("3:10"))
    assert set(found.values()) == {3}
    # 10 * (0.25, 0.35, 0.35, 0.25) = 2.5, 3.5, 3.5, 2.5: two of the halves have room for one more
    found = patterns(model, [0.75, 0.65, 0.65, 0.75], sizes, pattern_of("3:10"))
    assert sorted({(path.split(".")[2], keep) for path, keep in found.items()}) in (
        [("0", 2), ("1", 4), ("2", 4), ("3", 2)],
        [("0", 3), ("1", 3), ("2", 4), ("3", 2)],
    )


@pytest.mark.parametrize(
    ("weight", "mode", "said"),
    [
        (torch.full((48, 48), 0.5), "clean", "1 of 48 eigenvalues are above zero"),
        (torch.zeros(48, 48), "reference", "48 of 48 eigenvalues are zero"),
        (torch.zeros(48, 48), "clean", "0 of 48 eigenvalues are above zero"),
        (torch.eye(48), "clean", "all 48 eigenvalues in its tail are equal"),
    ],
)
def test_a_spectrum_without_a_law_names_its_linear(weight, mode: str, said: str) -> None:
    model = tiny_model("llama")
    model.model.layers[2].self_attn.o_proj.weight.data.copy_(weight)
    with pytest.raises(PrunebenchError, match=f"layer 2, self_attn.o_proj: .*{said}") as found:
        shares_of(model, mode=mode, metric="alpha")
    assert "another allocation" in str(found.value.hint)


def test_eigenvalues_of_a_matrix_of_low_rank_are_left_out() -> None:
    weight = spectrum([4, 3, 2, 1] + [0] * 12)
    values = eigenvalues(weight)
    assert len(values) == 16
    assert without_zeros(values, weight.shape) == pytest.approx([1, 4, 9, 16], rel=1e-4)
    full = eigenvalues(spectrum(np.geomspace(0.01, 10, 16)))
    assert len(without_zeros(full, weight.shape)) == 16


def test_small_eigenvalues_can_be_filtered() -> None:
    model = tiny_model("llama")
    small = np.concatenate([np.full(24, 1e-3), np.geomspace(0.1, 3, 24)])  # squares of 1e-6
    model.model.layers[0].self_attn.q_proj.weight.data.copy_(spectrum(small))
    path = "model.layers.0.self_attn.q_proj"
    found = {
        keep: shares_of(model, metric="alpha_mid", filter_zeros=keep)[1]["alphas"][path]
        for keep in (False, True)
    }
    squares = np.geomspace(0.1, 3, 24) ** 2
    assert found[True] == pytest.approx(released(squares, "alpha_mid")[0], rel=1e-3)
    assert found[False] == pytest.approx(
        released(np.concatenate([np.full(24, 1e-6), squares]), "alpha_mid")[0], rel=1e-3
    )
    assert found[True] > found[False]


def test_a_second_allocation_decomposes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tensor_folder, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(alphapruning, "SMALL", 0)
    model = tiny_model("llama")
    first, _ = shares_of(model)
    decomposed: list[torch.Size] = []

    def counted(weight: torch.Tensor) -> torch.Tensor:
        decomposed.append(weight.shape)
        return eigenvalues(weight)

    monkeypatch.setattr(alphapruning, "eigenvalues", counted)
    assert shares_of(model)[0] == first
    assert decomposed == []
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    shares_of(model)
    assert decomposed == [torch.Size([48, 80])]
