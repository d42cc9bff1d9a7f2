"""OWL and uniform: invariants of the formula, an independent computation, zeros of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunebench import Allocation, Context, LinearStats, PrunebenchError, pattern_of
from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from prunebench_plugins.owl import spread
from tiny import tiny_model

ALLOCATIONS = load_plugins().registered("allocation")
METHODS = load_plugins().registered("method")


def context_of(model) -> Context:
    return Context(tiny_calibration(), 0, list(range(len(model.model.layers))))


def owl(**options):
    kind = ALLOCATIONS["owl"]
    return kind(kind.Options.model_validate(options))


def outlying(seed: int = 0):
    """A tiny Llama whose deeper layers have heavier tails."""
    model = tiny_model("llama", seed)
    for depth, layer in enumerate(model.model.layers, start=1):
        for parameter in layer.mlp.parameters():
            parameter.copy_(parameter.sign() * parameter.abs() ** (1 + depth))
    return model


def shares_of(model, sparsity: float = 0.6, **options) -> list[float]:
    return owl(**options).shares(model, sparsity, context_of(model))


def by_hand(model, sparsity: float, threshold: float, spread: float) -> list[float]:
    """The paper's formulas, with inputs caught by plain hooks in one forward of the whole model."""
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1)})
            )
    model(tiny_calibration())
    ratios = []
    for layer in range(len(model.model.layers)):
        inside = [name for name in seen if f".layers.{layer}." in name]
        scores = torch.cat(
            [(model.get_submodule(n).weight.abs() * seen[n].norm(dim=0)).flatten() for n in inside]
        )
        ratios.append(100 * float((scores > threshold * scores.mean()).float().mean()))
    scaled = torch.tensor(ratios, dtype=torch.float64)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min()) * 2 * spread
    return (1 - (scaled - scaled.mean() + 1 - sparsity)).tolist()


@pytest.mark.parametrize("threshold", [3.0, 5.0])
def test_shares_are_those_of_the_papers_formulas(threshold: float) -> None:
    found = shares_of(outlying(), threshold=threshold, spread=0.15)
    assert found == pytest.approx(by_hand(outlying(), 0.6, threshold, 0.15), abs=1e-6)
    assert len(set(found)) > 1


def test_mean_and_range_are_exact_and_more_outliers_keep_more() -> None:
    model = outlying()
    context = context_of(model)
    found = owl(threshold=3.0, spread=0.1).shares(model, 0.5, context)
    outliers = context.notes["outliers"]
    assert sum(found) / len(found) == pytest.approx(0.5)
    assert max(found) - min(found) == pytest.approx(0.2)
    assert sorted(range(4), key=outliers.__getitem__) == sorted(
        range(4), key=found.__getitem__, reverse=True
    )


def test_no_spread_is_uniform() -> None:
    assert shares_of(outlying(), spread=0) == pytest.approx([0.6] * 4)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.2, 0.8), st.floats(0, 0.1))
def test_the_mean_share_is_the_one_asked_for(
    outliers: list[float], sparsity: float, width: float
) -> None:
    found = shares_for(outliers, sparsity, spread=width)
    assert sum(found) / len(found) == pytest.approx(sparsity)
    assert max(found) - min(found) == pytest.approx(
        2 * width if len(set(outliers)) > 1 else 0, abs=1e-9
    )


def with_outliers(outliers: list[float], **options):
    """OWL for layers with these outliers."""

    class Known(ALLOCATIONS["owl"]):
        def _densities(self, model, context):
            return spread(outliers, self.options.spread)

    return Known(Known.Options.model_validate(options))


def shares_for(outliers: list[float], sparsity: float, **options) -> list[float]:
    return with_outliers(outliers, **options).shares(None, sparsity, Context(None, 0, []))


def kept_for(outliers: list[float], pattern: str, **options) -> list[int]:
    return with_outliers(outliers, **options).keep(None, pattern_of(pattern), Context(None, 0, []))


@pytest.mark.parametrize(
    ("mode", "most", "least"), [("clean", 0.99, 0.0), ("reference", 1.0, 0.01)]
)
def test_a_share_has_limits_and_those_of_the_released_code_in_reference_mode(
    mode: str, most: float, least: float
) -> None:
    assert max(shares_for([0.0, 1.0, 1.0, 1.0], 0.95, spread=0.5, mode=mode)) == most
    assert min(shares_for([0.0, 0.0, 0.0, 1.0], 0.05, spread=0.5, mode=mode)) == least
    # exactly nothing is raised too, a little is not
    assert min(shares_for([0.0, 1.0], 0.25, spread=0.25, mode=mode)) == least
    assert min(shares_for([0.0, 1.0], 0.375, spread=0.25, mode=mode)) == 0.125


def published_zeros(outliers: list[float], zeros: int, lamda: float) -> list[int]:
    """The released code's mixed N:M, from its description: zeros of a group in each layer."""
    ratio = np.array(outliers)
    ratio = (ratio - ratio.min()) / (ratio.max() - ratio.min()) * lamda
    return [int(zeros - step) for step in np.round(ratio - ratio.mean())]


@given(st.lists(st.floats(0, 10), min_size=2, max_size=40, unique=True), st.sampled_from([1, 2]))
def test_mixed_patterns_are_those_of_the_released_code(outliers: list[float], lamda: int) -> None:
    if max(outliers) - min(outliers) < 1e-3:
        return
    kept = kept_for(outliers, "3:8", threshold=6, spread=lamda / 16)
    assert [8 - keep for keep in kept] == published_zeros(outliers, 5, lamda)


def test_mixed_patterns_have_a_known_answer_and_limits() -> None:
    outliers = [0.5, 1.0, 1.5, 4.5]
    # 2 * (D - 0.5) / 4 = 0, 0.25, 0.5, 2, less their mean of 0.6875, rounded
    assert kept_for(outliers, "3:8", spread=0.125) == [2, 3, 3, 4]
    assert kept_for([0.0, 1.0], "1:8", spread=0.5) == [1, 5]
    assert kept_for([0.0, 1.0], "1:8", spread=0.5, mode="reference") == [0, 5]
    assert kept_for([0.0, 1.0], "7:8", spread=0.5) == [3, 8]
    assert kept_for([1.0, 1.0], "2:4", spread=0.5) == [2, 2]


@pytest.mark.parametrize("name", ["magnitude", "random", "wanda", "sparsegpt"])
def test_every_layer_gets_its_own_pattern(name: str) -> None:
    model = outlying()
    context = context_of(model)
    kind = METHODS[name]
    with torch.no_grad():
        context.shares = allocate(owl(threshold=3.0, spread=0.25), model, "4:8", context)
        kind(kind.Options(sparsity="4:8")).prune(model, context)
    patterns = context.notes["allocation"]["layer_patterns"]
    assert len(set(patterns)) > 1
    for pattern, layer in zip(patterns, model.model.layers, strict=True):
        keep, of = pattern_of(pattern)
        assert of == 8
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                zeros = (module.weight == 0).view(-1, of).sum(1)
                assert zeros.unique().tolist() == [of - keep]
    share = sum(1 - pattern_of(pattern).keep / 8 for pattern in patterns) / len(patterns)
    assert context.notes["allocation"]["mean_share"] == pytest.approx(share)


def test_uniform_gives_every_linear_the_pattern() -> None:
    model = tiny_model("llama")
    found = allocate(ALLOCATIONS["uniform"](None), model, "2:4", context_of(model))
    assert set(found.values()) == {"2:4"}


def test_the_threshold_and_the_spread_are_those_of_the_released_recipe() -> None:
    """M = 5 and lambda = 0.08: three times the mean, or another range, gives other shares."""
    found = owl().shares(outlying(), 0.7, context_of(outlying()))
    assert found == pytest.approx(by_hand(outlying(), 0.7, 5.0, 0.08), abs=1e-6)
    assert found != pytest.approx(by_hand(outlying(), 0.7, 3.0, 0.08), abs=1e-4)
    assert max(found) - min(found) == pytest.approx(0.16)


def test_owl_does_not_change_the_model() -> None:
    model, before = outlying(), outlying()
    shares_of(model)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


@pytest.mark.parametrize("name", ["magnitude", "random", "wanda", "sparsegpt"])
def test_every_layer_loses_its_own_share(name: str) -> None:
    model = outlying()
    context = context_of(model)
    kind = METHODS[name]
    method = kind(kind.Options(sparsity=0.5))
    with torch.no_grad():
        context.shares = allocate(owl(threshold=3.0, spread=0.2), model, 0.5, context)
        method.prune(model, context)
    for wanted, layer in zip(
        context.notes["allocation"]["layer_shares"], model.model.layers, strict=True
    ):
        weights = [
            module.weight for module in layer.modules() if isinstance(module, torch.nn.Linear)
        ]
        zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(
            weight.numel() for weight in weights
        )
        assert zeros == pytest.approx(wanted, abs=0.03)
    assert method.options.sparsity == 0.5


def test_uniform_is_what_happens_without_an_allocation() -> None:
    one, other = tiny_model("qwen2"), tiny_model("qwen2")
    kind = METHODS["wanda"]
    context = context_of(one)
    context.shares = allocate(ALLOCATIONS["uniform"](None), one, 0.5, context)
    kind(kind.Options(sparsity=0.5)).prune(one, context)
    kind(kind.Options(sparsity=0.5)).prune(other, context_of(other))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_linears_that_share_an_input_may_have_different_shares(name: str) -> None:
    model = tiny_model("llama")
    context = context_of(model)
    linears = context.linears(model)
    shares = {path: 0.75 if path.endswith("k_proj") else 0.25 for path in linears}
    kind = METHODS[name]
    context.shares = shares
    kind(kind.Options(sparsity=0.5)).prune(model, context)
    for path, linear in linears.items():
        assert float((linear.weight == 0).float().mean()) == pytest.approx(
            shares[path], abs=0.03
        ), path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0.5] * 3, "3 shares are given, the model has 4"),
        ([0.5, 0.5, 0.5, 1.2], "gets 1.2, which is no share"),
        ([0.5, 0.5, float("nan"), 0.5], "gets nan"),
        ({"model.layers.0.self_attn.q_proj": 0.5}, "is left out"),
        ({"lm_head": 0.5}, "left out|no prunable linear"),
    ],
)
def test_shares_that_make_no_sense_are_refused(given, said: str) -> None:
    class Odd(ALLOCATIONS["uniform"]):
        name = "odd"

        def shares(self, model, sparsity, context):
            return given

    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match=said):
        allocate(Odd(None), model, 0.5, context_of(model))


def test_a_cell_records_the_shares_and_its_text(run_cell) -> None:
    record = run_cell("magnitude", {"sparsity": 0.5, "allocation": {"owl": {"threshold": 3.0}}})
    assert record.status == "ok", record.error
    assert record.cell.label == "magnitude sparsity=0.5 allocation=owl threshold=3"
    assert record.cost.calibration_sha256
    assert len(record.method_notes["allocation"]["layer_shares"]) == 4
    assert record.method_notes["allocation"]["mean_share"] == pytest.approx(0.5)
    assert record.audit.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_layer_may_lose_nothing_or_everything() -> None:
    class Extreme(ALLOCATIONS["uniform"]):
        name = "extreme"

        def shares(self, model, sparsity, context):
            return [0.0, 1.0, 0, 1]

        def keep(self, model, pattern, context):
            return [0, 4, 2, 1]

    model = tiny_model("llama")
    for sparsity, expected in ((0.5, [0, 1, 0, 1]), ("2:4", ["0:4", "4:4", "2:4", "1:4"])):
        found = allocate(Extreme(None), model, sparsity, context_of(model))
        for layer, wanted in enumerate(expected):
            of_layer = {each for path, each in found.items() if f".layers.{layer}." in path}
            assert of_layer == {wanted}


def test_allocations_that_can_divide_patterns_say_so() -> None:
    class Shares(Allocation):
        name = "shares"

        def shares(self, model, sparsity, context):
            return []

    for name in ("uniform", "owl", "alphapruning", "ecoflap"):
        assert ALLOCATIONS[name].divides_patterns()
    assert not Shares.divides_patterns()
    assert not Shares.needs_calibration
    assert not Shares.uses_seed


def outliers_of(scores: torch.Tensor, **options) -> list[float]:
    """The outliers that OWL notes of two layers: one has these scores, and one has no outliers."""

    class Known(Context):
        def observe_linears(self, model, statistics, see, *, only=None) -> None:
            for weight in (scores, torch.ones_like(scores)):
                linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
                linear.weight.data.copy_(weight)
                norm = torch.ones(weight.shape[1])
                see(
                    {"x": linear},
                    {"x": LinearStats(0, "x", torch.Generator(), {"input_norm": norm})},
                )

    context = Known(None, 0, [0, 1])
    owl(**options).shares(None, 0.5, context)
    return context.notes["outliers"]


def test_outliers_are_the_percentage_of_scores_above_the_multiple_of_the_mean() -> None:
    scores = torch.tensor([[1.0, 1, 1, 5], [1, 1, 1, 5]])  # their mean is 2
    assert outliers_of(scores, threshold=2.0) == [25.0, 0.0]
    assert outliers_of(scores, threshold=2.5) == [0.0, 0.0]  # 5 is not above 5
    assert outliers_of(-scores, threshold=0.4) == [100.0, 100.0]
