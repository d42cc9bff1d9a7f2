"""Distillation: its loss and gradient by autograd, what it trains, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from prunebench import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.testing.contexts import tiny_context
from prunebench.testing.models import tiny_calibration
from prunebench.training.windows import TrainingWindows
from prunebench_plugins import distill_objective
from prunebench_plugins.distill_objective import Distillation
from tiny import VOCABULARY, tiny_model

KIND = load_plugins()["recovery"]["distill"].value
TOKENS = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(4))


def counted() -> torch.Tensor:
    found = torch.zeros_like(TOKENS, dtype=torch.bool)
    found[0, 3:6] = found[1, 1:2] = found[2, 4:9] = True
    return found


def other(family: str = "llama"):
    """A model with weights that differ from the dense one's."""
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def by_autograd(model, dense, options, windows) -> torch.Tensor:
    """The sum of the loss over the tokens that count, as the docstring defines it."""
    found = model(windows.tokens[:, :-1], output_hidden_states=True)
    with torch.no_grad():
        wanted = dense(windows.tokens[:, :-1], output_hidden_states=True)
    heat = options.temperature
    p = (wanted.logits / heat).softmax(-1)
    loss = heat**2 * (p * (p.log() - (found.logits / heat).log_softmax(-1))).sum(-1)
    likely = found.logits.log_softmax(-1).gather(-1, windows.tokens[:, 1:, None])
    loss = loss - options.next_token_weight * likely[..., 0]
    mine, theirs = found.hidden_states[-1], wanted.hidden_states[-1]
    error = (mine - theirs).square().mean(-1) / theirs.square().mean(-1)
    loss = loss + options.states_weight * error
    return loss.sum() if windows.counted is None else (loss * windows.counted[:, 1:]).sum()


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 2.5},
        {"next_token_weight": 0.7},
        {"states_weight": 3.0, "temperature": 0.5, "next_token_weight": 0.2},
    ],
)
def test_loss_and_gradient_are_those_of_autograd(given, some, monkeypatch) -> None:
    monkeypatch.setattr(distill_objective, "LOGITS_BYTES", 5 * 4 * VOCABULARY)
    options = KIND.Options(**given)
    windows = TrainingWindows(TOKENS, counted() if some else None)
    dense = tiny_model("llama")
    model, plain = (other().requires_grad_(True) for _ in range(2))
    objective = Distillation(model, dense, options)
    expected = by_autograd(plain, dense, options, windows)
    (0.25 * expected).backward()
    expected = expected.item()
    assert objective.backward(windows, 0.25) == pytest.approx(expected, rel=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert not any(each.grad is not None for each in dense.parameters())
    mean = expected / objective.targets(windows)
    assert objective.mean(windows, 2) == pytest.approx(mean, rel=1e-5)
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *dense.modules()])


def test_a_model_that_is_dense_has_no_loss_and_no_gradient() -> None:
    model = tiny_model("gemma").requires_grad_(True)
    objective = Distillation(model, tiny_model("gemma"), KIND.Options(states_weight=1.0))
    assert objective.backward(TrainingWindows(TOKENS), 1.0) == pytest.approx(0, abs=1e-4)
    assert all(float(each.grad.abs().max()) < 1e-4 for each in model.parameters())


def recovered(model, **options):
    context = tiny_context(tiny_model("llama"))
    given = {"learning_rate": 5e-4, "min_learning_rate": 0, "batch_size": 2, "epochs": 6}
    with torch.enable_grad():
        KIND(KIND.Options(**{**given, **options})).recover(model, context)
    return context


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"bfloat16": True}, {"states_weight": 1.0}],
    ids=str,
)
def test_the_pruned_model_comes_closer_to_the_dense_one_and_keeps_its_zeros(options) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
    objective = Distillation(model, tiny_model("llama"), KIND.Options())
    windows = TrainingWindows(tiny_calibration())
    before = objective.mean(windows, 8)
    context = recovered(model, **options)
    assert objective.mean(windows, 8) < 0.8 * before
    assert context.notes["masked_linears"] == len(model.model.layers)
    assert context.notes["tokens_per_second"] > 0
    assert all(not layer.mlp.down_proj.weight[:, ::2].any() for layer in model.model.layers)
    assert not model.is_activation_checkpointing


def test_checkpointing_and_micro_batches_change_rounding_alone() -> None:
    models = [other() for _ in range(3)]
    recovered(models[0], micro_batch_size=2)
    recovered(models[1], micro_batch_size=1)
    recovered(models[2], micro_batch_size=2, gradient_checkpointing=True)
    for one in models[1:]:
        for mine, theirs in zip(one.parameters(), models[0].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_learning_rate_ends_at_its_minimum_and_the_warm_up_begins_below_it() -> None:
    options = KIND.Options(warmup_steps=10)
    rates = [options.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[4] == pytest.approx(5e-5)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx((1e-4 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)
    constant = KIND.Options(schedule="constant")
    assert constant.rate(70, 100) == 1e-4


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="above `learning_rate`"):
        KIND.Options(learning_rate=1e-6)
    narrow = tiny_model("llama", hidden_size=16)
    with pytest.raises(PrunebenchError, match="have 16 channels, and those of the dense model 48"):
        recovered(narrow, states_weight=1.0)
    with pytest.raises(PrunebenchError, match="one vocabulary") as raised:
        recovered(tiny_model("llama", vocab_size=100))
    assert "predicts 100 tokens" in str(raised.value)


def test_a_model_without_its_checkpoint_is_refused() -> None:
    context = tiny_context(tiny_model("llama"))
    context.dense_source = None
    with pytest.raises(PrunebenchError, match="came without its checkpoint"):
        KIND(KIND.Options()).recover(tiny_model("llama"), context)


def test_autocast_is_left_alone_unless_it_is_asked_for(monkeypatch) -> None:
    seen = []
    model = SimpleNamespace(get_input_embeddings=tiny_model("llama").get_input_embeddings)
    monkeypatch.setattr(
        distill_objective, "_run", lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    for options in (KIND.Options(), KIND.Options(bfloat16=True)):
        Distillation(model, model, options)._outputs(TrainingWindows(TOKENS))
    assert seen == [False, False, True, True]
