"""DSnoT: the exchange by hand, row by row, and what it leaves as its initial method made it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import LinearStats, PrunebenchError, anatomy
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_context
from prunebench_plugins.dsnot_refine import SequenceMoments
from tiny import tiny_model

METHODS = load_plugins().registered("method")
DSNOT = METHODS["dsnot"]


def build(**options: object) -> Any:
    return DSNOT(DSNOT.Options.model_validate(options))


def prune(family: str = "llama", method: str = "dsnot", **options: object) -> Any:
    model = tiny_model(family)
    context = tiny_context(model)
    kind = METHODS[method]
    with torch.no_grad():
        kind(kind.Options.model_validate(options)).prune(model, context)
    return model, context


def linears(model) -> dict[str, torch.nn.Linear]:
    return tiny_context(model).linears(model)


def known(seed: int, rows: int = 5, columns: int = 24) -> tuple[torch.Tensor, LinearStats]:
    """A weight, and statistics of an input with means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    sums = torch.randn(columns, generator=generator)
    variance = torch.rand(columns, generator=generator) + 0.5
    norm = torch.rand(columns, generator=generator) + 0.5
    moments = torch.stack([sums, variance])
    found = {"input_norm": norm, "sequence_moments": moments}
    return weight, LinearStats(0, "self_attn.q_proj", generator, found)


def by_hand(weight, stats, gone, cycles, threshold, same_sign, of=None) -> list[list[bool]]:
    """The paper's cycles on plain numbers, one row after the other."""
    sums, variance = stats["sequence_moments"].double().tolist()
    norm = stats.input_norm.double().tolist()
    found = []
    for row, mask in zip(weight.double().tolist(), gone.tolist(), strict=True):
        pull = [w * s for w, s in zip(row, sums, strict=True)]
        error = sum(pull[j] for j in range(len(row)) if mask[j])
        first, used, now = error, set(), list(mask)
        for _ in range(cycles):
            if abs(error) <= threshold:
                break
            sign = 1 if error > 0 else -1
            back = [j for j in range(len(row)) if mask[j] and j not in used and sign * pull[j] > 0]
            if not back:
                break
            grown = max(back, key=lambda j: abs(pull[j]) / variance[j])
            out = [j for j in range(len(row)) if not mask[j] and j not in used]
            if of is None:
                out = [j for j in out if sign * pull[j] < 0]
            else:
                out = [j for j in out if j // of == grown // of]
            if not out:
                break
            dropped = min(out, key=lambda j: abs(row[j]) * norm[j])
            after = error - pull[grown] + pull[dropped]
            if same_sign and after * first <= 0:
                break
            error, now[grown], now[dropped] = after, False, True
            used |= {grown, dropped}
        found.append(now)
    return found


@settings(max_examples=15)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.sampled_from([1, 3, 50]),
    st.booleans(),
)
def test_rows_exchange_weights_as_in_the_paper(
    seed: int, sparsity: float, cycles: int, without: bool
) -> None:
    weight, stats = known(seed)
    method = build(sparsity=sparsity, max_cycle_time=cycles, without_same_sign=without)
    wanda = METHODS["wanda"]
    gone = wanda(wanda.Options(sparsity=sparsity)).mask(weight, stats)
    pruned = weight.clone()
    method.prune_group([pruned], [stats])
    assert (pruned == 0).tolist() == by_hand(weight, stats, gone, cycles, 0.1, not without)
    assert (pruned == 0).sum(dim=1).equal(gone.sum(dim=1)), "every row keeps its count"
    assert pruned[pruned != 0].equal(weight[pruned != 0]), "weights that stay are dense"
    [(before, after)] = method.errors
    pull = weight * stats["sequence_moments"][0]
    assert before == pytest.approx(float((pull * gone).sum(dim=1).abs().mean()), rel=1e-4)
    assert after == pytest.approx(float((pull * (pruned == 0)).sum(1).abs().mean()), abs=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 50]))
def test_of_equal_weights_the_left_one_is_exchanged_first(seed: int, cycles: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(1, 3, (5, 24), generator=generator) * 1.0
    signs = torch.randint(0, 2, (24,), generator=generator) * 2.0 - 1
    moments = torch.stack([signs, torch.ones(24)])
    found = {"input_norm": torch.ones(24), "sequence_moments": moments}
    stats = LinearStats(0, "self_attn.q_proj", generator, found)
    wanda = METHODS["wanda"]
    gone = wanda(wanda.Options(sparsity=0.5)).mask(weight, stats)
    pruned = weight.clone()
    build(sparsity=0.5, max_cycle_time=cycles).prune_group([pruned], [stats])
    assert (pruned == 0).tolist() == by_hand(weight, stats, gone, cycles, 0.1, same_sign=False)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(["2:4", "1:4", "3:4", "4:8"]))
def test_groups_keep_their_pattern(seed: int, sparsity: str) -> None:
    weight, stats = known(seed)
    keep, of = map(int, sparsity.split(":"))
    wanda = METHODS["wanda"]
    gone = wanda(wanda.Options(sparsity=sparsity)).mask(weight, stats)
    pruned = weight.clone()
    build(sparsity=sparsity, update_threshold=0.0).prune_group([pruned], [stats])
    assert set((pruned == 0).reshape(-1, of).sum(dim=1).tolist()) == {of - keep}
    assert (pruned == 0).tolist() == by_hand(weight, stats, gone, 50, 0.0, same_sign=True, of=of)


def test_the_power_of_the_variance_decides_what_comes_back() -> None:
    weight = torch.tensor([[3.0, 2.0, -9.0, 9.0]])
    moments = torch.tensor([[1.0, 1.0, 1.0, 1.0], [9.0, 1.0, 1.0, 1.0]])
    found = {"input_norm": torch.ones(4), "sequence_moments": moments}
    stats = LinearStats(0, "self_attn.q_proj", torch.Generator(), found)
    for power, returned in ((1.0, 1), (0.0, 0)):
        pruned = weight.clone()
        build(sparsity=0.5, max_cycle_time=1, pow_of_var_regrowing=power).prune_group(
            [pruned], [stats]
        )
        assert pruned[0, returned] == weight[0, returned]
        assert pruned[0, 2] == 0  # the only one that lowers the error


@pytest.mark.parametrize("initial", ["magnitude", "sparsegpt", "random"])
def test_it_refines_any_method_and_keeps_each_rows_count(initial: str) -> None:
    options = {"sparsity": 0.5}
    first, _ = prune(method=initial, **options)
    model, context = prune(initial_method=initial, skip_layer="no_skip", **options)
    dense = linears(tiny_model("llama"))
    path = "model.layers.0.self_attn.q_proj"  # behind it inputs differ
    ours, theirs = linears(model)[path].weight, linears(first)[path].weight
    assert not (ours == 0).equal(theirs == 0)
    assert (ours == 0).sum(dim=1).equal((theirs == 0).sum(dim=1))
    stayed = (ours != 0) & (theirs != 0)
    assert ours[stayed].equal(theirs[stayed])
    back = (ours != 0) & (theirs == 0)
    assert ours[back].equal(dense[path].weight[back])
    assert context.notes["error"]["after"] < context.notes["error"]["before"]
    assert 0 < context.notes["exchanged"] < 0.5


def test_the_initial_method_has_its_own_options() -> None:
    options = {"sparsity": 0.5, "initial_method": {"wanda": {"use_variant": True}}}
    model, _ = prune(skip_layer="no_skip", **options)
    first, _ = prune(method="wanda", sparsity=0.5, use_variant=True)
    path = "model.layers.0.self_attn.q_proj"
    counts = [(linears(one)[path].weight == 0).sum(dim=1) for one in (model, first)]
    assert counts[0].equal(counts[1])
    assert counts[0].unique().numel() > 1, "rows of this variant differ"
    assert build(initial_method={"wanda": {"use_variant": False}}).options.initial_method == "wanda"


@pytest.mark.parametrize(
    ("skipped", "refined", "family"),
    [
        ("mlp", "attention", "opt"),
        ("mlp", "attention", "gpt_neox"),
        ("self_attn", "mlp", "opt"),
        ("no_skip", None, "llama"),
    ],
)
def test_what_is_skipped_has_the_initial_mask(
    skipped: str, refined: str | None, family: str
) -> None:
    first, _ = prune(family, "wanda", sparsity=0.5)
    model, _ = prune(family, sparsity=0.5, skip_layer=skipped, update_threshold=0.0)
    parts = anatomy(model)
    for name, linear in parts.linears(parts.layers[0]).items():
        theirs = first.get_submodule(f"{parts.layers_path}.0.{name}").weight
        kind = "attention" if name in parts.linears(parts.layers[0], "attention") else "mlp"
        assert linear.weight.equal(theirs) == (refined is not None and kind != refined), name


def test_one_linear_can_be_skipped() -> None:
    first, _ = prune(method="wanda", sparsity=0.5)
    model, _ = prune(sparsity=0.5, skip_sub_layer="k_proj")
    ours, theirs = (one.model.layers[0].self_attn for one in (model, first))
    assert ours.k_proj.weight.equal(theirs.k_proj.weight)
    assert not ours.q_proj.weight.equal(theirs.q_proj.weight)


def test_reference_takes_the_lowest_magnitudes_of_each_row() -> None:
    weight, stats = known(3)
    pruned = weight.clone()
    method = build(initial_method="magnitude", mode="reference", skip_sub_layer="q_proj")
    method.prune_group([pruned], [stats])
    expected = weight.abs().argsort(dim=1)[:, :12].sort(dim=1).values
    assert (pruned == 0).nonzero()[:, 1].view(5, 12).equal(expected)


def test_moments_are_those_within_windows() -> None:
    windows = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)) + 2
    statistic = SequenceMoments(4, torch.device("cpu"))
    statistic.add(windows[:2].flatten(0, 1), 2)
    statistic.add(windows[2], 1)
    sums, variance = statistic.result()
    assert torch.allclose(sums, windows.sum(dim=1).mean(dim=0), rtol=1e-5)
    assert torch.allclose(variance, windows.var(dim=1, unbiased=False).mean(dim=0), rtol=1e-5)


def moments_of(window: torch.Tensor) -> torch.Tensor:
    statistic = SequenceMoments(window.shape[1], window.device)
    statistic.add(window, 1)
    return statistic.result()


@pytest.mark.parametrize("tokens", [1, 63, 64, 200])
def test_the_variance_is_that_of_torch_to_the_last_bit(tokens: int) -> None:
    """Also where a feature is the same in all tokens, nearly so, or very large in one of them."""
    window = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(tokens))
    window[:, 1] = 0.1
    window[:, 2] = 1000 + window[:, 2] / 1000
    window[0, 3] = 3000
    window[:, 4] *= 1e30
    _, variance = moments_of(window)
    assert variance.equal(window.var(dim=0, unbiased=False))
    assert variance[1] == 0


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(value: float) -> None:
    window = torch.ones(70, 2)
    window[65, 0] = value
    assert moments_of(window)[1].isfinite().tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"initial_method": "wnada"}, "no method 'wnada' is registered; did you mean 'wanda'"),
        ({"initial_method": "shortgpt"}, "'shortgpt' does not prune the weights of linears"),
        ({"initial_method": "dsnot"}, "'dsnot' does not prune"),
        ({"initial_method": {"wanda": {"sparsity": 0.3}}}, "give `sparsity` beside initial_method"),
        ({"initial_method": {"wanda": {"use_varian": True}}}, "Extra inputs are not permitted"),
        ({"initial_method": {"wanda": {}, "ria": {}}}, "write a method's name"),
        ({"initial_method": {"magnitude": {"scope": "global"}}}, "`scope: global` decides it"),
        ({"initial_method": "sparsegpt", "mode": "reference"}, "ranks scores in each row"),
        ({"max_cycle_time": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        build(**options)


def test_it_streams_and_draws_as_its_initial_method_does() -> None:
    assert DSNOT.refuses_streaming(build().options) is None
    assert DSNOT.uses_seed_for(build(initial_method="random").options)
    assert not DSNOT.uses_seed_for(build().options)
    assert build(initial_method={"sparsegpt": {"true_sequential": True}}).true_sequential


def test_a_pattern_that_does_not_divide_names_the_linear() -> None:
    with pytest.raises(PrunebenchError, match=r"layer 0, self_attn\.q_proj: groups of 7 do not"):
        prune(sparsity="3:7")
