"""DISP-LLM: its gates and loss by other formulas, the exact budget, the physical form, resuming."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import Context, PrunebenchError, anatomy, learning
from prunebench.plugin.host import load_plugins
from prunebench.suite.estimate import estimate
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from prunebench.testing import tiny_calibration, tiny_context, tiny_model
from prunebench.training import checkpoint
from prunebench.training.checkpoint import TrainingCheckpoints
from prunebench.training.windows import TrainingWindows
from prunebench_plugins import disp_llm_training as training
from prunebench_plugins.disp_llm_budget import Budget, LayerSizes, blocks_of

KIND = load_plugins()["method"]["disp-llm"].value
SHORT = {"total_n_step": 5, "hidden_size": 4, "hn_lr": 0.1}
IDS = tiny_calibration(windows=2, length=12, seed=9)


def prune(model, context: Context | None = None, **options: Any) -> Context:
    context = tiny_context(model) if context is None else context
    with torch.no_grad():
        KIND(KIND.Options.model_validate({**SHORT, **options})).prune(model, context)
    return context


def objective(model, **options: Any) -> tuple[training.HyperNetwork, training.GatedModel]:
    given = KIND.Options.model_validate({**SHORT, **options})
    budget = Budget.of(anatomy(model))
    torch.manual_seed(2)
    network = training.HyperNetwork(budget.sizes, 4, 0.5)
    return network, training.GatedModel(model, network, budget, 0.4, given)


def by_weights(model, gates: torch.Tensor, sizes: list[int]):
    """Logits of the model whose matrices are multiplied by the gates, instead of its states."""
    weights = dict(model.named_parameters())
    every = gates.split(sizes)
    for layer in range(4):
        one, two, three, four, five = every[5 * layer : 5 * layer + 5]
        path = f"model.layers.{layer}."
        for name in ("q", "k", "v"):
            weights[f"{path}self_attn.{name}_proj.weight"] = (
                weights[f"{path}self_attn.{name}_proj.weight"] * one
            )
        for name in ("gate", "up"):
            weights[f"{path}mlp.{name}_proj.weight"] = (
                weights[f"{path}mlp.{name}_proj.weight"] * three
            )
        for name, columns, rows in (("self_attn.o", None, two), ("mlp.down", four**2, five)):
            weight = weights[f"{path}{name}_proj.weight"] * rows[:, None]
            weights[f"{path}{name}_proj.weight"] = weight if columns is None else weight * columns
    return torch.func.functional_call(model, weights, (IDS[:, :-1],)).logits


@pytest.mark.parametrize("kind", ["soft", "straight-through"])
def test_the_loss_and_its_gradient_are_those_of_autograd(kind: str) -> None:
    model = tiny_model("llama")
    network, gated = objective(model, gates=kind, lam=3.0)
    sizes = Budget.of(anatomy(model)).sizes
    torch.manual_seed(7)
    first, second = (training.noise("gumbel", sum(sizes)) for _ in range(2))
    theta = network()
    soft, other = (torch.sigmoid((theta + each) / 0.4) for each in (first, second))
    gates = soft if kind == "soft" else soft + (soft.round() - soft).detach()
    losses = torch.nn.functional.cross_entropy(
        by_weights(model, gates, sizes).flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"
    )
    hard = other + (other.round() - other).detach()
    kept = torch.zeros(())
    for layer in range(4):
        one, two, three, four, five = (
            each.sum() for each in hard.split(sizes)[5 * layer : 5 * layer + 5]
        )
        kept = kept + one * (48 + 24 + 24) + two * 48 + three * four * 2 + four * five
    dense = sum(each.weight.numel() for each in tiny_context(model).linears(model).values())
    expected = losses + IDS[:, 1:].numel() * 3.0 * (kept / dense / 0.4).log().abs()
    (0.25 * expected).backward()
    wanted = [each.grad.clone() for each in network.parameters()]
    network.zero_grad()
    torch.manual_seed(7)
    found = gated.backward(TrainingWindows(IDS), 0.25)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    for each, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=2e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())
    window, loss, removed = gated.state()["curve"][0]
    assert (window, loss) == (1, pytest.approx(losses.item() / 22, rel=1e-5))
    assert removed == pytest.approx(1 - kept.item() / dense, rel=1e-5)


@pytest.mark.parametrize("overflows", [False, True])
def test_a_model_in_float16_has_the_gradients_of_one_in_float32(
    overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overflows:
        monkeypatch.setattr(training, "_FLOAT16_FACTOR", 2.0**40)
    found = []
    for dtype in (torch.float32, torch.float16):
        network, gated = objective(tiny_model("llama").to(dtype))
        torch.manual_seed(7)
        gated.backward(TrainingWindows(IDS), 1 / 22)
        found.append(network.heads[2].weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=2e-3)
    assert (gated.state()["factor"] < 2.0**40) is True


def test_one_gumbel_is_skewed_and_two_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    one = training.noise("gumbel", 200_000, generator)
    assert float(one.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(one.median()) == pytest.approx(-math.log(math.log(2)), abs=0.01)
    two = training.noise("logistic", 200_000, generator)
    assert float(two.mean()) == pytest.approx(0, abs=0.02)
    assert float((two < 1).float().mean()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.005)
    options = KIND.Options
    assert options().even == pytest.approx(-0.3665, abs=1e-4)
    assert options(noise="logistic").even == options(gates="reinmax").even == 0


def test_reinmax_is_exact_for_squares() -> None:
    """Its gradient is p/2 after a 0 and (1 - p)/2 after a 1, so that E[d D^2] = p (1 - p)."""
    torch.manual_seed(1)
    theta = torch.full((4000,), 0.8, requires_grad=True)
    drawn = training.reinmax(theta, 1.0)
    p = 1 / (1 + math.exp(-0.8))
    assert float(drawn.detach().mean()) == pytest.approx(p, abs=0.03)
    assert set(drawn.detach().round().tolist()) == {0.0, 1.0}
    drawn.sum().backward()
    assert theta.grad is not None
    expected = torch.where(drawn > 0.5, (1 - p) / 2, p / 2)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 1.0))
def test_the_budget_is_exact(seed: int, share: float) -> None:
    budget = Budget((LayerSizes(9, 14, 24, 12, 2), LayerSizes(9, 6, 20, 16, 1)))
    assert budget.total == 9 * 24 + 9 * 12 + 14 * 9 * 2 + 14 * 9 + 9 * 20 + 9 * 16 + 6 * 9 * 2
    scores = torch.randn(sum(budget.sizes), generator=torch.Generator().manual_seed(seed)).round(
        decimals=1
    )  # some are equal
    masks, threshold = budget.within(scores, share)
    assert budget.kept(masks) <= share + 1e-9
    every = budget.widths(masks)
    assert all(min(layer) >= 1 for layer in every)
    assert bool((scores[~masks] <= threshold).all())
    # The next entry, the first of the highest scores that went, would be one too many.
    left = torch.where(masks, -math.inf, scores)
    if not bool(masks.all()):
        left[left.argmax()] = math.inf
        more = masks | (left == math.inf)
        assert budget.kept(more) > share
    weights = sum(
        a * each.into_attention + b * each.out_of_attention + d * (c * each.into_channel + e)
        for each, (a, b, c, d, e) in zip(budget.layers, every, strict=True)
    )
    assert budget.kept(masks) == weights / budget.total
    assert float(budget.share(masks.float())) == pytest.approx(weights / budget.total, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # tests/model/test_indexed.py has more
@torch.no_grad()
def test_the_pruned_model_computes_what_its_masks_do(family: str) -> None:
    model, dense = tiny_model(family), tiny_model(family)
    budget = Budget.of(anatomy(dense))
    before = tiny_context(dense).linears(dense)
    assert budget.total == sum(each.weight.numel() for each in before.values())
    context = prune(model, ratio=0.5, total_n_step=2)
    layers = anatomy(model).layers
    masks = torch.zeros(sum(budget.sizes))
    place = 0
    inside = context.dense_indices.groups
    for index, layer in enumerate(layers):
        channels = next(kept for block, kept in inside.items() if block == (index, "mlp"))
        for name in ("attention_reads", "attention_writes", "mlp_reads", "mlp", "mlp_writes"):
            kept = channels if name == "mlp" else getattr(layer, name).tolist()
            masks[[place + each for each in kept]] = 1
            place += 80 if name == "mlp" else 48
    with training.gated(dense, masks, budget.sizes):
        expected = dense(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    after = context.linears(model)
    notes = context.notes
    counted = sum(each.weight.numel() for each in after.values())
    assert notes["ratio"] == pytest.approx(1 - counted / budget.total, abs=1e-12)
    assert 0.5 <= notes["ratio"] < 0.502
    assert [sum(each) for each in notes["widths"]] == [
        int(each.sum()) for each in masks.split(80 + 4 * 48)
    ]


def test_it_learns_the_budget_and_says_what_it_cost(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    context, said = tiny_context(model), []
    context.say = said.append
    with caplog.at_level(logging.INFO):
        notes = prune(model, context, ratio=0.6, total_n_step=25, lam=6.0).notes
    assert notes["steps"] == 25
    first, last = notes["budget_curve"][0], notes["budget_curve"][-1]
    assert first[0] == 1 and last[0] == 25
    assert first[2] < 0.2
    assert last[2] == pytest.approx(0.6, abs=0.15)
    assert notes["learned_ratio"] == pytest.approx(0.6, abs=0.2)
    assert notes["last_loss"] < notes["first_loss"]
    assert notes["tokens_per_second"] > 0 and notes["seconds_per_step"] > 0
    assert re.match(
        r"loss \S+, cross-entropy 5\.\d+, \d+\.\d% of 60\.0% removed, \d+ tokens/s, \S+ GB$",
        said[0],
    )
    assert f"training step 1 of 25: {said[0]}" in caplog.text
    assert not any(each.requires_grad for each in model.parameters())


def test_gates_that_keep_nothing_have_a_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network, gated = objective(tiny_model("llama"))
    monkeypatch.setattr(training, "hard_gates", lambda theta, _: theta * 0)
    found = gated.backward(TrainingWindows(IDS), 1.0)
    assert math.isfinite(found)
    assert all(bool(torch.isfinite(each.grad).all()) for each in network.parameters())


def test_target_parameters_counts_the_whole_model() -> None:
    model = tiny_model("llama")
    before = sum(each.numel() for each in model.parameters())
    prune(model, target_parameters=0.3, total_n_step=1)
    after = sum(each.numel() for each in model.parameters())
    assert 1 - after / before == pytest.approx(0.3, abs=2e-3)
    with pytest.raises(PrunebenchError, match="more than attentions and MLPs have"):
        prune(tiny_model("llama"), target_parameters=0.9)


def test_nothing_to_remove_trains_nothing() -> None:
    model = tiny_model("llama")
    notes = prune(model, ratio=0.0).notes
    assert notes == {"asked_ratio": 0.0}
    assert torch.equal(model(IDS).logits, tiny_model("llama")(IDS).logits)


def test_too_little_for_one_channel_each_is_an_error() -> None:
    with pytest.raises(PrunebenchError, match="less than one channel for every attention and MLP"):
        prune(tiny_model("llama"), ratio=0.999, total_n_step=1)


def test_sampled_masks_depend_on_the_seed_and_miss_the_budget() -> None:
    ratios = {}
    for seed in (0, 1):
        model = tiny_model("llama")
        context = Context(tiny_calibration(), seed, list(range(4)))
        notes = prune(model, context, masks="sampled", total_n_step=2).notes
        ratios[seed] = notes["ratio"]
        assert notes["threshold"] is None
    assert ratios[0] != ratios[1]
    assert all(ratio < 0.4 for ratio in ratios.values())


@pytest.mark.parametrize("train_inputs", [False, True])
def test_the_inputs_train_if_they_are_asked_to(train_inputs: bool) -> None:
    model = tiny_model("llama")
    notes = prune(model, train_inputs=train_inputs, total_n_step=1).notes
    inputs = notes["hypernetwork_parameters"] - notes["trained_parameters"]
    assert inputs == (0 if train_inputs else 20 * 4)


class Killed(BaseException):
    """The process ended here."""


def test_a_killed_training_gives_the_same_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHARE", 1e12)
    expected = tiny_model("llama")
    wanted = prune(expected).notes

    def killed(done: int, _total: int) -> None:
        if done == 4:
            raise Killed

    for kill in (True, False):
        model = tiny_model("llama")
        context = tiny_context(model)
        context.checkpoints = TrainingCheckpoints(tmp_path, every_s=0)
        if kill:
            context.progress = killed
            with pytest.raises(Killed):
                prune(model, context)
        else:
            found = prune(model, context).notes
    assert found["resumed_after_step"] == 3
    same = ("widths", "threshold", "budget_curve", "loss_curve", "learned_ratio")
    assert [found[name] for name in same] == [wanted[name] for name in same]
    ours, theirs = model.state_dict(), expected.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in ours.items())


def test_the_cosine_is_that_of_the_released_code() -> None:
    options = KIND.Options(use_sch=True, min_hn_lr=1e-4, total_n_step=7)
    plan = options.training(3)
    assert plan.steps(3) == 7
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=7, eta_min=1e-4)
    for step in range(7):
        assert plan.rate(step, 7) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        schedule.step()
    assert KIND.Options().training(3).rate(9_999, 10_000) == 1e-3
    assert KIND.Options(total_n_step=30, batch_size=4).training(7).steps(7) == 30


def test_the_plan_counts_every_step(tmp_path: Path) -> None:
    registry = load_plugins()
    (tmp_path / "s.yaml").write_text(
        "name: s\nmodels: tiny-llama\nmethods:\n"
        "  - minitron: {ratio: 0.5}\n  - disp-llm: {batch_size: 2}\n"
        "calibration: {corpus: tiny-text, windows: 4, length: 32}\n"
        "quality: {perplexity: {corpus: tiny-text, windows: 2, length: 32}}\nprofile: null\n"
    )
    _, other, ours = plan(load_suite(tmp_path / "s.yaml", registry=registry), registry).cells
    told = [estimate(cell, registry).tokens for cell in (other, ours)]
    # A backward pass counts as two forward passes.
    assert told[1] - told[0] == 3 * 10_000 * 2 * 32


def test_validation_takes_the_likely_gates() -> None:
    model = tiny_model("llama")
    network, gated = objective(model)
    budget = Budget.of(anatomy(model))
    with torch.no_grad():
        gates = (network() > math.log(math.log(2))).float()
        logits = by_weights(model, gates, budget.sizes)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    assert gated.mean(TrainingWindows(IDS), 1) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "said"),
    [("opt", "not one attention and one MLP"), ("mixtral", "mlp holds experts")],
)
def test_families_without_such_blocks_are_refused_before_the_training(
    family: str, said: str
) -> None:
    model = tiny_model(family)
    with pytest.raises(PrunebenchError, match=said):
        prune(model, total_n_step=10_000_000)
    assert all(map(torch.equal, model.parameters(), tiny_model(family).parameters()))


def test_bad_options_and_blocks() -> None:
    with pytest.raises(ValidationError, match="`ratio` or `target_parameters`, not both"):
        KIND.Options(ratio=0.5, target_parameters=0.2)
    assert KIND.refuses_streaming(KIND.Options()) == "it looks at the model as a whole"
    budget = Budget((LayerSizes(3, 4, 6, 6, 2),))
    masks = torch.tensor([1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]).bool()
    reads, writes, inside = blocks_of(budget, masks)
    assert list(reads.values()) == [[0, 2], [2]]
    assert list(writes.values()) == [[1], [0, 1]]
    assert list(inside.values()) == [[0, 3]]


def test_a_cell_counts_what_went(run_cell) -> None:
    record = run_cell("disp-llm", {**SHORT, "ratio": 0.5})
    assert record.status == "ok", record.error
    assert record.audit.missed is None
    assert record.audit.form == "sliced"
    assert 1 - record.audit.prunable / record.audit.prunable_dense == pytest.approx(0.5, abs=3e-3)
    assert record.audit.kept.mlp_reads.keys() == {0, 1, 2, 3}
    assert not record.flags


def test_learning_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").requires_grad_(True)
    with learning(model, []):
        assert not any(each.requires_grad for each in model.parameters())
    prune(model, total_n_step=1)
    assert all(each.grad is None for each in model.parameters())
