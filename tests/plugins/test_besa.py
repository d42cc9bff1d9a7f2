"""BESA: the differentiable ranking, the budget, what is learned, streaming, bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import prunebench
from prunebench import PrunebenchError, anatomy
from prunebench.plugin.api.allocation import allocate
from prunebench.testing import tiny_calibration, tiny_checkpoint, tiny_context, tiny_model
from prunebench_plugins import besa_ranking as ranking
from prunebench_plugins import besa_training
from prunebench_plugins.besa import BESA, BESAAllocation
from prunebench_plugins.besa_optimiser import clip, cosine_factor
from prunebench_plugins.besa_units import LayerSparsity
from prunebench_plugins.sparsegpt import SparseGPT, inverse_factor
from prunebench_plugins.wanda import Wanda

QUICK = {"layers": [0, 2]}


def pruned(model=None, tokens=None, **options):
    """A pruned model and the notes."""
    model = tiny_model("llama") if model is None else model
    context = tiny_context(model)
    if tokens is not None:
        context.calibration = tokens
    with torch.no_grad():
        BESA(BESA.Options.model_validate({**QUICK, **options})).prune(model, context)
    return model, context.notes


def linears(model):
    parts = anatomy(model)
    return {
        f"{index}.{name}": linear.weight
        for index, layer in enumerate(parts.layers)
        for name, linear in parts.linears(layer).items()
    }


def zeros(model) -> dict[str, torch.Tensor]:
    """Zeros of each row of the linears in the first two layers."""
    found = linears(model)
    return {name: (w == 0).sum(1) for name, w in found.items() if name[0] in "01"}


def explicit_mask(beta, order, units, thresholds):
    """1 - P of each weight by the paper's formula, one candidate after the other."""
    lines, length = order.shape
    removed = torch.zeros(lines, length)
    for line in range(lines):
        for d, count in enumerate(thresholds.tolist()):
            at = order[line, :count]
            part = torch.zeros(length)
            part[at] = 1.0
            removed[line] = removed[line] + beta[line // (lines // units), d] * part
    return 1 - removed


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([0.2, 0.3]))
def test_the_gradient_is_that_of_the_probabilities(seed, units, columns, step) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, grad = (torch.randn(4, 4, generator=generator) for _ in range(2))
    score = torch.randint(0, 3, (4, 4), generator=generator).float()  # with ties
    candidates = ranking.candidates(step)
    of = ranking.ranked(score, weight, units, columns=columns)
    thresholds = ranking.thresholds(candidates, 4)
    theta = torch.randn(units, len(candidates), generator=generator, requires_grad=True)
    beta = theta.softmax(1)
    counts = (beta @ candidates * 4).long()
    masked = ranking.LearnedMask.apply(beta, counts, of, thresholds)
    (found,) = torch.autograd.grad((masked * grad).sum(), theta)
    order = (score.t() if columns else score).sort(dim=1, stable=True).indices
    soft = explicit_mask(theta.softmax(1), order, units, thresholds)
    weights = of.turned(of.weight * soft)
    (expected,) = torch.autograd.grad((weights * grad).sum(), theta)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    # Hard forward: exactly so many of the least important weights of each line are gone.
    hard = masked.t() if columns else masked
    for line in range(4):
        count = int(counts[line // (4 // units)])
        assert set((hard[line] == 0).nonzero().flatten().tolist()) == set(
            order[line, :count].tolist()
        )
    # A more important weight is never less likely to stay.
    assert bool((soft.gather(1, order).diff(dim=1) >= -1e-6).all())


def test_the_released_code_mixes_up_the_gradient_of_columns() -> None:
    """Probabilities [units, rows] are read as [rows, units]; written out with its operations."""
    generator = torch.Generator().manual_seed(3)
    rows, columns, block = 5, 6, 2
    units = columns // block
    weight, grad = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    candidates = ranking.candidates(0.2)
    of = ranking.ranked(weight.abs(), weight, units, columns=True, mixed=True)
    thresholds = ranking.thresholds(candidates, rows)
    theta = torch.randn(units, len(candidates), generator=generator, requires_grad=True)
    beta = theta.softmax(1)
    counts = (beta.detach() @ candidates * rows).long()
    masked = ranking.LearnedMask.apply(beta, counts, of, thresholds)
    (found,) = torch.autograd.grad((masked * grad).sum(), theta)
    counted = (torch.arange(rows) < thresholds[:, None]).float()  # [D, rows]
    kept = 1 - theta.softmax(1) @ counted  # [units, rows]
    spread = kept.reshape(rows, units, 1).repeat(1, 1, block).reshape(rows, columns)
    order = weight.abs().sort(dim=0, stable=True).indices
    mask = torch.zeros(rows, columns).scatter(0, order, spread)
    (expected,) = torch.autograd.grad((weight * mask * grad).sum(), theta)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    notes = pruned(layers=[0, 1], wise_dim="column", blocksize=4, mode="reference")[1]
    assert notes["training_steps"] == 4


@given(st.floats(0.02, 0.98), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_first_coefficients_have_the_asked_mean(sparsity: float, step: float) -> None:
    values = ranking.candidates(step)
    assert values[0] == 1 and values[-1] == 0 and bool((values.diff() < 0).all())
    mean = float(ranking.tilt(values, sparsity).softmax(0) @ values)
    assert mean == pytest.approx(sparsity, abs=1e-5)


def test_candidates_are_the_papers() -> None:
    assert len(ranking.candidates(0.01)) == 101
    assert float(ranking.tilt(ranking.candidates(0.01), 0.5).abs().max()) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1), st.integers(1, 40))
def test_trimming_gives_the_exact_budget_and_keeps_the_order(shares, target, length) -> None:
    sizes = torch.full((len(shares),), float(length), dtype=torch.float64)
    budget = round(target * length * len(shares))
    before = torch.tensor(shares, dtype=torch.float64)
    after = ranking.shifted(before, sizes, budget)
    assert float((after * sizes).sum()) == pytest.approx(budget, abs=1e-6)
    counts = ranking.whole_counts(after, sizes, budget)
    assert int(counts.sum()) == budget
    assert bool(((counts - after * sizes).abs() <= 1 + 1e-6).all())
    assert bool((counts >= 0).all()) and bool((counts <= length).all())
    order = before.sort(stable=True).indices
    assert bool((after[order].diff() >= 0).all())


def test_without_training_the_mask_is_wandas() -> None:
    model, _ = pruned(epochs=0)
    twin = tiny_model("llama")
    with torch.no_grad():
        Wanda(Wanda.Options(sparsity=0.5, **QUICK)).prune(twin, tiny_context(twin))
    assert all(map(torch.equal, linears(model).values(), linears(twin).values()))


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, False),
        ({"blocksize": -1, "prune_dense": True}, True),
        ({"blocksize": 8, "norm_all": True, "prune_batch_size": 3}, False),
        ({"metric": "sparsegpt", "epochs": 2, "use_cos_sche": True}, False),
        ({"metric": "ria", "sigmoid_smooth": False, "clip_grad": 1e-3}, False),
    ],
)
def test_rows_learn_their_own_sparsity_within_the_budget(options, same: bool) -> None:
    model, notes = pruned(sparsity=0.6, learning_rate=0.5, **options)
    dense = linears(tiny_model("llama"))
    found = linears(model)
    total, spread = {"0": 0, "1": 0}, []
    size = dict(total)
    for name, rows in zeros(model).items():
        kept = found[name] != 0
        assert torch.equal(found[name][kept], dense[name][kept])  # survivors do not change
        total[name[0]] += int(rows.sum())
        size[name[0]] += found[name].numel()
        spread.append(int(rows.max() - rows.min()))
    assert (max(spread) <= 1) == same
    for layer, removed in total.items():
        assert removed == round(0.6 * size[layer])  # the exact budget
    assert len({float(rows.float().mean()) for rows in zeros(model).values()}) > 2
    assert notes["asked_sparsity"] == 0.6
    assert notes["achieved_sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert notes["learned_sparsity"] == pytest.approx(0.6, abs=0.1)
    steps = 2 if "prune_batch_size" in options else 4  # of four windows, in each layer
    assert notes["training_steps"] == 2 * steps * options.get("epochs", 1)
    assert notes["trained_tokens"] == 96 * options.get("epochs", 1)
    for name, rows in zeros(model).items():
        path = f"model.layers.{name}"
        share = rows.double() / found[name].shape[1]
        assert notes["sparsity"][path] == pytest.approx(float(share.mean()))
        assert notes["lowest_line"][path] == pytest.approx(float(share.min()))
        assert notes["highest_line"][path] == pytest.approx(float(share.max()))


def test_columns_and_fixed_linears() -> None:
    model, _ = pruned(
        wise_dim="column", fix_layers=["q_proj", "mlp"], layers=[0, 1], learning_rate=0.5
    )
    weights = linears(model)
    for name in ("0.self_attn.q_proj", "0.mlp.up_proj"):
        removed = (weights[name] == 0).sum(0)
        assert set(removed.tolist()) == {len(weights[name]) // 2}
    learned = (weights["0.self_attn.v_proj"] == 0).sum(0)
    assert len(set(learned.tolist())) > 1
    assert not bool((weights["1.mlp.up_proj"] == 0).any())
    everything, notes = pruned(fix_layers=["all"])
    assert notes["training_steps"] == 0
    plain, _ = pruned(epochs=0)
    assert all(map(torch.equal, linears(everything).values(), linears(plain).values()))


def test_training_lowers_the_loss_at_the_same_sparsity() -> None:
    before = pruned(epochs=0, layers=[0, 1])[1]
    after = pruned(epochs=6, layers=[0, 1])[1]
    assert after["achieved_sparsity"] == pytest.approx(before["achieved_sparsity"], abs=1e-4)
    assert after["reconstruction_loss"][0] < 0.99 * before["reconstruction_loss"][0]
    assert len(after["training_loss"]) == 1
    assert "training_loss" not in before


@pytest.mark.parametrize("norm_all", [False, True])
@torch.no_grad()
def test_the_loss_is_the_papers(norm_all: bool) -> None:
    """sum(((Y - Y') / c)^2) / hidden in float64, with the outputs of whole forwards."""
    dense = tiny_model("llama")
    model, notes = pruned(epochs=0, layers=[0, 1], norm_all=norm_all)
    windows = tiny_calibration()
    reached = model(windows, output_hidden_states=True).hidden_states[1].double()
    wanted = dense(windows, output_hidden_states=True).hidden_states[1].double()
    scale = wanted.norm(dim=1, keepdim=True)  # of each channel in a window, [windows, 1, hidden]
    if norm_all:
        scale = wanted.flatten(0, 1).norm(dim=0)
    losses = ((wanted - reached) / scale).square().sum((1, 2)) / 48
    assert notes["reconstruction_loss"] == [pytest.approx(float(losses.mean()), rel=1e-4)]


@pytest.mark.parametrize(("l2_alpha", "sparsity_beta"), [(0.0, 5.0), (0.0, 2.0), (3.0, 0.0)])
def test_the_gradient_has_both_terms(l2_alpha, sparsity_beta, monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        besa_training, "clip", lambda theta, _options: seen.append(theta.grad.clone())
    )
    options = {"layers": [0, 1], "mode": "reference", "sparsity": 0.6, "blocksize": -1}
    pruned(**options, l2_alpha=l2_alpha, sparsity_beta=sparsity_beta)
    if not l2_alpha:  # what draws the mean sparsity A from 0.5 to S
        theta = torch.zeros(7, 101, requires_grad=True)
        sizes = torch.tensor(
            [w.numel() for n, w in linears(tiny_model("llama")).items() if n[0] == "0"]
        )
        mean = theta.sigmoid().softmax(1) @ ranking.candidates(0.01) @ (sizes / sizes.sum())
        (sparsity_beta * ((mean - 0.6) / 0.6) ** 2).backward()
        torch.testing.assert_close(seen[0], theta.grad, rtol=1e-4, atol=1e-9)
        return
    pruned(**options, l2_alpha=1.0, sparsity_beta=0.0)
    torch.testing.assert_close(seen[0], 3 * seen[4])  # four windows later, the first step again
    assert bool((seen[0] != 0).any())


def test_a_target_far_from_a_half_is_reached_though_the_released_code_misses_it() -> None:
    notes = pruned(sparsity=0.8, layers=[0, 1], trim=False)[1]
    assert notes["learned_sparsity"] == pytest.approx(0.8, abs=0.02)
    released = pruned(sparsity=0.8, layers=[0, 1], mode="reference", epochs=10, learning_rate=1.0)[
        1
    ]
    assert 0.5 < released["learned_sparsity"] < 0.63
    assert released["achieved_sparsity"] == pytest.approx(released["learned_sparsity"], abs=0.03)


def state_of(**options) -> LayerSparsity:
    weight = torch.randn(3, 576, generator=torch.Generator().manual_seed(0))
    of = {"a": ranking.ranked(weight.abs(), weight, 3, columns=False)}
    return LayerSparsity(of, BESA.Options(**options), 0.5)


def test_only_the_reference_mode_counts_in_float32_as_released() -> None:
    almost = torch.tensor([0.49999997] * 3)
    assert state_of().counts(almost, 576).tolist() == [288] * 3
    assert state_of(mode="reference").counts(almost, 576).tolist() == [287] * 3
    assert state_of().final_counts(trim=False)["a"].tolist() == [288] * 3


def test_the_learning_rate_follows_a_cosine_which_the_released_code_begins_late() -> None:
    options = {"use_cos_sche": True, "epochs": 4}
    clean = [cosine_factor(BESA.Options(**options), epoch) for epoch in range(4)]
    late = [cosine_factor(BESA.Options(**options, mode="reference"), epoch) for epoch in range(4)]
    assert clean == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-5)
    assert late == pytest.approx([1, 1, 0.853553, 0.5], abs=1e-5)
    assert cosine_factor(BESA.Options(epochs=4), 3) == 1


@pytest.mark.parametrize(
    ("mode", "expected"), [("norm", [0.06, 0.08]), ("value", [0.1, 0.1]), ("agc", [3e-5, 4e-5])]
)
def test_gradients_are_clipped(mode: str, expected: list[float]) -> None:
    theta = torch.zeros(1, 2, requires_grad=True)
    theta.grad = torch.tensor([[0.3, 0.4]])
    limit = 0.05 if mode == "agc" else 0.1
    clip(theta, BESA.Options(clip_grad=limit, clip_mode=mode))
    assert theta.grad.flatten().tolist() == pytest.approx(expected, rel=1e-4)


def test_scores_are_those_of_the_methods() -> None:
    model = tiny_model("llama")
    seen = {}

    def keep(linears, stats):
        seen.setdefault("stats", dict(stats))

    with torch.no_grad():
        tiny_context(model).observe_linears(model, {"input_norm", "hessian"}, keep)
        stats = seen["stats"]["mlp.down_proj"]
        weight = linears(model)["0.mlp.down_proj"]
        norm = stats.input_norm
        diagonal = inverse_factor(stats.hessian, 0.01).diagonal()
        size = weight.abs()
        expected = {
            "magnitude": size,
            "wanda": size * norm,
            "ria": (size / size.sum(0) + size / size.sum(1, keepdim=True)) * norm.sqrt(),
            "sparsegpt": (weight / diagonal) ** 2,
            "sparsegpt-released": weight**2 / diagonal,
        }
        for metric, score in expected.items():
            found = linears(pruned(epochs=0, metric=metric, layers=[0, 1])[0])["0.mlp.down_proj"]
            # Inputs of down_proj are behind pruned linears of the same layer in no method.
            lowest = score.sort(dim=1, stable=True).indices[:, :40]
            assert bool((found.gather(1, lowest) == 0).all()), metric
            assert int((found == 0).sum()) == 40 * 48, metric


def test_defaults_are_the_released_recipes() -> None:
    options = BESA.Options()
    assert (options.blocksize, options.prune_dense, options.sparsity_step) == (1, False, 0.01)
    assert (options.epochs, options.prune_batch_size, options.sparsity_beta) == (1, 1, 5.0)
    assert (options.metric, options.sigmoid_smooth, options.l2_alpha) == ("wanda", True, 1.0)
    assert (options.optimizer, options.d_coef, options.weight_decay) == ("adamw", 5.0, 0.0)
    assert BESAAllocation.Options().prune_dense
    assert BESA.published_calibration["windows"] == 128


def test_prodigy_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    model = tiny_model("llama")
    with pytest.raises(PrunebenchError, match="Prodigy is not installed") as caught:
        pruned(model, optimizer="prodigy")
    assert "prunebench[besa]" in caught.value.hint
    assert not bool((linears(model)["0.mlp.up_proj"] == 0).any())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": "2:4"}, "besa learns shares"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"blocksize": 0}, "0 rows share nothing"),
        ({"metric": "taylor"}, "wanda"),
        ({"sparsity_step": 0.0}, "greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BESA.Options.model_validate(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blocksize": 7}, "blocksize 7 does not divide the 48 rows of model.layers.0.self_attn"),
        ({"fix_layers": ["c_proj"]}, "no linear that is pruned has 'c_proj' in its name"),
        ({"linears": ["c_proj"]}, "no linear of the layers has 'c_proj' in its name"),
    ],
)
def test_what_the_model_does_not_have_is_refused(options, said: str) -> None:
    with pytest.raises(PrunebenchError, match=said):
        pruned(**options)


def test_options_of_prodigy_have_no_effect_for_adamw() -> None:
    assert set(BESA.Options(d_coef=1.0).without_effect()) >= {"d_coef", "safeguard_warmup"}
    assert "trim" in BESA.Options(mode="reference").without_effect()
    assert "says" not in (BESA.refuses_allocation(BESA.Options()) or "")


def test_nothing_asked_nothing_removed() -> None:
    model, notes = pruned(sparsity=0.0)
    assert all(map(torch.equal, model.parameters(), tiny_model("llama").parameters()))
    assert notes["training_steps"] == 0 and notes["learned_sparsity"] == 0


def test_a_constant_layer_and_equal_weights_are_no_trouble() -> None:
    model = tiny_model("llama")
    for name, weight in linears(model).items():
        weight.copy_(torch.zeros_like(weight) if name[0] == "0" else torch.full_like(weight, 0.02))
    _, notes = pruned(model, epochs=2)
    assert notes["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
    # Of equal scores the first ones go, so what is left does not depend on chance.
    again, model_again = tiny_model("llama"), linears(model)
    for name, weight in linears(again).items():
        weight.copy_(torch.zeros_like(weight) if name[0] == "0" else torch.full_like(weight, 0.02))
    pruned(again, epochs=2)
    assert all(map(torch.equal, model_again.values(), linears(again).values()))


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = tiny_model("llama")
    linears(model)["0.self_attn.v_proj"][0, 0] = float("inf")
    with pytest.raises(PrunebenchError, match="not finite"):
        pruned(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_too(dtype: torch.dtype) -> None:
    model, notes = pruned(tiny_model("llama").to(dtype), layers=[0, 1], learning_rate=0.5)
    rows = zeros(model)["0.mlp.up_proj"]
    assert len(set(rows.tolist())) > 1
    assert notes["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)


def shares_of(model, sparsity: float, **options):
    context = tiny_context(model)
    kind = BESAAllocation(BESAAllocation.Options.model_validate(options))
    with torch.no_grad():
        return allocate(kind, model, sparsity, context), context


def test_the_allocation_divides_the_budget_of_each_layer_and_leaves_the_model() -> None:
    model, before = tiny_model("llama"), tiny_model("llama")
    shares, context = shares_of(model, 0.6, epochs=2)
    assert all(map(torch.equal, model.parameters(), before.parameters()))
    sizes = {path: linear.weight.numel() for path, linear in context.linears(model).items()}
    for layer in range(4):
        inside = [path for path in sizes if f".{layer}." in path]
        total = sum(sizes[path] for path in inside)
        assert sum(shares[path] * sizes[path] for path in inside) / total == pytest.approx(0.6)
        assert len({shares[path] for path in inside}) > 1
    assert context.notes["asked_sparsity"] == 0.6
    raw, other = shares_of(model, 0.6, trim=False, fix_layers=["q_proj"])
    assert raw["model.layers.0.self_attn.q_proj"] == 0.6
    assert sum(raw[path] * sizes[path] for path in raw) / sum(sizes.values()) == pytest.approx(
        other.notes["learned_sparsity"], abs=1e-6
    )


def test_the_allocation_is_the_method_without_its_masks() -> None:
    """Both learn the same, layer after layer, behind the same masks."""
    model = tiny_model("llama")
    shares, context = shares_of(model, 0.5, mode="reference", epochs=3)
    _, notes = pruned(
        layers=None, blocksize=-1, prune_dense=True, mode="reference", epochs=3, sparsity=0.5
    )
    assert context.notes["layer_learned_sparsity"] == notes["layer_learned_sparsity"]
    assert context.notes["reconstruction_loss"] == notes["reconstruction_loss"]
    for path, share in shares.items():
        assert notes["sparsity"][path] == pytest.approx(share, abs=1 / 48)


def test_sparsegpt_takes_the_shares() -> None:
    model = tiny_model("llama")
    shares, context = shares_of(model, 0.5, metric="sparsegpt")
    context.shares = shares
    with torch.no_grad():
        SparseGPT(SparseGPT.Options(sparsity=0.5)).prune(model, context)
    for path, linear in context.linears(model).items():
        found = float((linear.weight == 0).float().mean())
        assert found == pytest.approx(float(shares[path]), abs=0.01)


def test_the_same_text_gives_the_same_weights_and_other_text_others() -> None:
    one, two = pruned()[0], pruned()[0]
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    other = pruned(tokens=tiny_calibration(seed=6))[0]
    assert not all(map(torch.equal, one.parameters(), other.parameters()))


def test_streaming_writes_the_folder_of_pruning_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 50)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    tiny_checkpoint(tmp_path / "model")
    for method, options in (
        ("besa", {"layers": [1, None]}),
        ("wanda", {"sparsity": 0.5, "allocation": "besa"}),
    ):
        written = []
        for out, stream in (("whole", False), ("streamed", True)):
            prunebench.prune(
                "model",
                method,
                options=options,
                calibration={"corpus": "text.txt", "windows": 2, "length": 16},
                out=out,
                force=True,
                stream=stream,
            )
            written.append(prunebench.load_pruned(tmp_path / out))
        assert all(map(torch.equal, written[0].parameters(), written[1].parameters())), method
