"""ECoFLaP: the scores of a plain loop, exact restoring, budgets, the released water-filling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from prunebench import Context, PrunebenchError, pattern_of
from prunebench.plugin.api.allocation import allocate
from prunebench.plugin.host import load_plugins
from prunebench.testing import tiny_calibration
from prunebench_plugins.ecoflap_budget import distribute, distribute_as_released
from prunebench_plugins.ecoflap_scores import check_scores, noise_seeds
from tiny import VOCABULARY, tiny_model

KIND = load_plugins().registered("allocation")["ecoflap"]
WINDOWS = tiny_calibration()[:2, :16]


def context_of(model, windows=WINDOWS, seed: int = 0) -> Context:
    return Context(windows, seed, list(range(4)))


def scores_of(model, *, windows=WINDOWS, seed: int = 0, **options) -> dict[str, float]:
    context = context_of(model, windows, seed)
    with torch.no_grad():
        KIND(KIND.Options.model_validate(options)).shares(model, 0.5, context)
    return context.notes["scores"]


def loss_of(model, window) -> float:
    return float(model(input_ids=window[None], labels=window[None]).loss.double())


@torch.no_grad()
def by_hand(model, windows, eps: float, draws: int, samples: int) -> dict[str, float]:
    """The released loop over matrices, windows and draws, with the whole model each time."""
    source, found = np.random.RandomState(0), {}
    for path in context_of(model).linears(model):
        weight = context_of(model).linears(model)[path].weight
        kept, slopes, done = weight.clone(), 0.0, 0
        for window in windows:
            for _ in range(draws):
                if done >= samples:
                    break
                torch.manual_seed(int(source.randint(1_000_000_000)))
                step = torch.normal(0.0, 1.0, weight.shape) * eps
                losses = []
                for sign in (1, -1):
                    weight.copy_(kept + sign * step)
                    losses.append(loss_of(model, window))
                slopes += abs(losses[0] - losses[1]) / (2 * eps)
                done += 1
        weight.copy_(kept)
        found[path] = slopes
    return found


@pytest.mark.parametrize("mode", ["clean", "reference"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_zeroth_order_scores_are_those_of_whole_models(family: str, mode: str) -> None:
    model, before = tiny_model(family), tiny_model(family)
    found = scores_of(model, mode=mode, noise_eps=0.01)
    assert all(map(torch.equal, model.parameters(), before.parameters()))
    expected = by_hand(model, WINDOWS, 0.01, 1, 2)
    assert list(found) == list(expected)
    # What float32 losses leave of a difference
    assert found == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert min(expected.values()) > 0


def test_several_draws_come_from_each_window_and_released_ones_use_up_the_samples() -> None:
    model = tiny_model("llama")
    clean = scores_of(model, num_noise=2, noise_eps=0.01)
    assert clean == pytest.approx(by_hand(model, WINDOWS, 0.01, 2, 4), rel=1e-3, abs=5e-4)
    context = context_of(model)
    quirk = KIND(KIND.Options(num_noise=3, noise_eps=0.01, num_samples=2, mode="reference"))
    with torch.no_grad():
        quirk.shares(model, 0.5, context)
    expected = by_hand(model, WINDOWS, 0.01, 3, 2)
    assert context.notes["scores"] == pytest.approx(expected, rel=1e-3, abs=5e-4)
    assert context.notes["score_windows"] == 1


def test_the_noise_has_the_seeds_of_numpy() -> None:
    source = np.random.RandomState(7)
    flat = [int(source.randint(1_000_000_000)) for _ in range(6)]
    assert noise_seeds(7, 3, 2) == [flat[:2], flat[2:4], flat[4:]]
    assert scores_of(tiny_model("llama")) != scores_of(tiny_model("llama"), seed=1)


def gradients(model, windows) -> list[dict[str, torch.Tensor]]:
    linears = context_of(model).linears(model)
    found = []
    for window in windows:
        with torch.enable_grad():
            for linear in linears.values():
                linear.weight.requires_grad_(True)
            loss = model(input_ids=window[None], labels=window[None]).loss
            grads = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
        found.append(dict(zip(linears, grads, strict=True)))
    for linear in linears.values():
        linear.weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("method", ["GradOnly", "GradMagAbs", "GradMagSquare"])
def test_first_order_scores_are_means_over_the_windows(method: str) -> None:
    model = tiny_model("llama")
    found = scores_of(model, use_mezo=False, score_method=method)
    of = {
        "GradOnly": lambda w, g: g.abs(),
        "GradMagAbs": lambda w, g: w.abs() * g.abs(),
        "GradMagSquare": lambda w, g: w.square() * g.square(),
    }[method]
    each = gradients(model, WINDOWS)
    expected = {
        path: sum(float(of(model.get_submodule(path).weight, g[path]).sum()) for g in each) / 2
        for path in each[0]
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("mezo", [True, False])
def test_matrices_that_are_parts_of_parameters_have_scores_too(mezo: bool) -> None:
    """A Conv1D of GPT-2 is stored as [in, out]."""
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=4, n_head=2, **ids)
    config.loss_type = "ForCausalLM"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = scores_of(model, use_mezo=mezo, noise_eps=0.01)
    if mezo:
        assert found == pytest.approx(by_hand(model, WINDOWS, 0.01, 1, 2), rel=1e-3, abs=2e-4)
    assert min(found.values()) > 0
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_zeroth_order_can_be_weighed_with_the_weights() -> None:
    model = tiny_model("llama")
    plain = scores_of(model)
    magnitude = scores_of(model, score_method="GradMagAbs")
    square = scores_of(model, score_method="GradMagSquare")
    for path, slope in plain.items():
        weight = model.get_submodule(path).weight.double()
        assert magnitude[path] == pytest.approx(slope * float(weight.abs().sum()), rel=1e-5)
        assert square[path] == pytest.approx(slope**2 * float(weight.square().sum()), rel=1e-5)


def test_the_mean_slope_is_that_of_gaussian_noise() -> None:
    """E |z . g| = ||g|| sqrt(2 / pi), here with 200 draws for one matrix."""
    from prunebench_plugins.ecoflap_scores import Noise, zeroth_order

    model = tiny_model("llama")
    path = "model.layers.3.mlp.down_proj"
    linear = model.get_submodule(path)
    [gradient] = [one[path] for one in gradients(model, WINDOWS[:1])]
    context = context_of(model)
    with torch.no_grad():
        found = zeroth_order(
            model, context, {3: {path: linear}}, WINDOWS[:1], {path: range(200)},
            Noise(1e-2, 200, released=False),
        )  # fmt: skip
    assert found[path] / 200 == pytest.approx(
        float(gradient.norm()) * math.sqrt(2 / math.pi), rel=0.15
    )


GROUPS = st.lists(st.tuples(st.floats(0, 1e3), st.integers(100, 10**6)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(GROUPS, st.floats(0.05, 0.9), st.floats(0.01, 0.5))
def test_the_budget_is_exact_and_no_share_is_above_the_limit(
    groups: list[tuple[float, int]], sparsity: float, above: float
) -> None:
    scores, sizes = [one for one, _ in groups], [size for _, size in groups]
    most = min(1.0, sparsity + above)
    found = distribute(scores, sizes, sparsity, most)
    kept = [round(size * (1 - share)) for size, share in zip(sizes, found, strict=True)]
    assert sum(kept) == pytest.approx(int(sum(sizes) * (1 - sparsity)), abs=len(sizes))
    if sum(math.ceil(size * (1 - most)) for size in sizes) <= int(sum(sizes) * (1 - sparsity)):
        assert sum(kept) == int(sum(sizes) * (1 - sparsity))
    assert all(-1e-12 <= share <= most + 1e-9 for share in found)


def test_more_score_keeps_more_and_full_groups_give_to_the_others() -> None:
    found = distribute([1.0, 2.0, 3.0], [1000] * 3, 0.6, 0.7)
    # 300 each, and 300 more in the ratio 1 : 2 : 3
    assert found == pytest.approx([0.65, 0.6, 0.55])
    # the third takes 700 of 900 * 100 / 102, then it is full
    assert distribute([1.0, 1.0, 100.0], [1000] * 3, 0.4, 0.7) == pytest.approx([0.6, 0.6, 0.0])
    assert distribute([0.0, 0.0, 5.0], [1000] * 3, 0.4, 0.7) == pytest.approx([0.6, 0.6, 0.0])
    assert distribute([1.0, 2.0], [100, 100], 0.6, 0.6) == pytest.approx([0.6, 0.6])
    assert distribute([2.0, 2.0], [500, 1000], 0.5, 0.6) == pytest.approx([0.45, 0.525])
    # 100 * (1 - 0.7) is a little above 30 in floats, and 30 stay
    assert distribute([1.0, 0.0], [100, 100], 0.6, 0.7) == pytest.approx([0.5, 0.7])


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=8))
def test_the_released_way_keeps_a_few_weights_too_many(scores: list[float]) -> None:
    sizes = [10_007] * len(scores)
    clean, quirk = (way(scores, sizes, 0.6, 0.7) for way in (distribute, distribute_as_released))
    assert quirk == pytest.approx(clean, abs=0.01)
    kept = sum(10_007 * (1 - share) for share in quirk)
    assert int(sum(sizes) * (1 - 0.6)) - 0.1 <= kept <= sum(sizes) * 0.4 + 2 * len(sizes) + 1


def test_the_released_way_adds_what_it_should_take_away() -> None:
    # 1000 groups of 0.4 * 10: 3 stay of each, and ceil(1/3) more of each of 3 are one weight more
    sizes = [11, 11, 11]  # 4 of each stay; 13 in all, so 1/3 more of each, rounded up: 15
    quirk = distribute_as_released([1.0, 1.0, 1.0], sizes, 0.6, 0.7)
    kept = [round(11 * (1 - share)) for share in quirk]
    assert kept == [7, 5, 5]  # two too many, and the first gets two more
    assert distribute([1.0, 1.0, 1.0], sizes, 0.6, 0.7) == pytest.approx([6 / 11, 7 / 11, 7 / 11])


@pytest.mark.parametrize("scores", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_released_loop_that_does_not_end_is_an_error(scores: list[float]) -> None:
    with pytest.raises(PrunebenchError, match="does not end"):
        distribute_as_released(scores, [100, 100], 0.5, 0.6)


def test_groups_are_layers_or_linears_and_their_scores_sums_or_means() -> None:
    model = tiny_model("llama")

    def shares(**options):
        context = context_of(model)
        with torch.no_grad():
            found = KIND(KIND.Options(use_mezo=False, **options)).shares(model, 0.5, context)
        return found, context.notes["scores"]

    blocks, scores = shares()
    totals = [sum(one for path, one in scores.items() if f".{i}." in path) for i in range(4)]
    assert sorted(range(4), key=totals.__getitem__) == sorted(range(4), key=lambda i: -blocks[i])
    assert max(blocks) <= 0.6
    linears, _ = shares(approach_for_sparsity="layer", max_sparsity_per_layer=0.9)
    assert list(linears) == list(scores)
    means, _ = shares(approach_for_sparsity="layer", aggregate_method="avg")
    size = {path: model.get_submodule(path).weight.numel() for path in scores}
    best = max(scores, key=lambda path: scores[path] / size[path])
    assert means[best] == min(means.values())


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.6), (0.95, 0.99), (0.995, 0.995)])
def test_no_share_is_far_above_the_sparsity(sparsity: float, most: float) -> None:
    model = tiny_model("llama")
    with torch.no_grad():  # the upper layers hardly matter
        for layer in model.model.layers[1:]:
            layer.mlp.down_proj.weight.mul_(1e-3)
            layer.self_attn.o_proj.weight.mul_(1e-3)
        kind = KIND(KIND.Options(use_mezo=False, score_method="GradMagSquare"))
        found = kind.shares(model, sparsity, context_of(model))
    assert max(found) == pytest.approx(most, abs=2e-3)


def test_windows_are_the_first_ones_and_too_few_are_an_error() -> None:
    model = tiny_model("llama")
    one = scores_of(model, use_mezo=False, num_samples=1)
    assert one == scores_of(model, use_mezo=False, windows=WINDOWS[:1])
    with pytest.raises(PrunebenchError, match="num_samples is 3, and the calibration has 2"):
        scores_of(model, num_samples=3)


@pytest.mark.parametrize("mezo", [True, False])
def test_windows_of_one_token_are_an_error(mezo: bool) -> None:
    model = tiny_model("llama")
    context = Context(tiny_calibration(2, 1), 0, list(range(4)))
    kind = load_plugins().registered("allocation")["ecoflap"]
    with pytest.raises(PrunebenchError, match="of one token ha") as caught, torch.no_grad():
        kind(kind.Options(use_mezo=mezo)).shares(model, 0.5, context)
    assert caught.value.hint


def test_a_limit_below_the_sparsity_is_an_error_before_any_work() -> None:
    with pytest.raises(PrunebenchError, match=r"0\.4 is below the sparsity 0\.5"):
        scores_of(None, max_sparsity_per_layer=0.4)


@pytest.mark.parametrize(
    ("scores", "said"),
    [({"a": 1.0, "b": float("nan")}, "the score of b is nan"), ({"a": 0.0}, "does not depend")],
)
def test_scores_that_decide_nothing_are_errors(scores: dict[str, float], said: str) -> None:
    with pytest.raises(PrunebenchError, match=said):
        check_scores(scores)


def test_a_model_whose_loss_is_constant_is_an_error_and_stays_as_it_was() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data.zero_()
    with pytest.raises(PrunebenchError, match="does not depend on any weight matrix"):
        scores_of(model)


def test_a_weight_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.layerwise.partial_forward import PartialForward

    model, before = tiny_model("llama"), tiny_model("llama")
    run, calls = PartialForward.run, []

    def failing(self, layer, batch, hidden, without_kinds=()):
        calls.append(layer)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return run(self, layer, batch, hidden, without_kinds)

    monkeypatch.setattr(PartialForward, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        scores_of(model)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_patterns_stay_within_the_budget_and_the_limit() -> None:
    model = tiny_model("llama")
    context = context_of(model)
    kind = KIND(KIND.Options(use_mezo=False, max_sparsity_per_layer=0.75))
    with torch.no_grad():
        found = allocate(kind, model, "4:8", context)
    kept = [pattern_of(one).keep for one in found.values()]
    assert min(kept) >= 2
    assert len(set(kept)) > 1
    assert context.notes["allocation"]["mean_share"] == pytest.approx(0.5, abs=0.07)


def test_streaming_is_refused_with_the_reason() -> None:
    assert "passes of the whole model" in KIND.refuses_streaming(KIND.Options())
