"""Training in float16 and bfloat16: gradients and scores are those of float32, nothing underflows.

The models are compared with float32 copies of their rounded weights. The output embeddings are
small and the batch has some thousand tokens, so most gradients in the model are near 6e-8, the
smallest number that float16 has.
"""

from __future__ import annotations

import copy

import pytest
import torch

from prunebench import Context, PrunebenchError, anatomy, next_token_backward
from prunebench.plugin.host import load_plugins
from prunebench.training import scaling
from prunebench.training.optimiser import Optimiser
from prunebench.training.scaling import GROW_AFTER, START, LossScale
from tiny import tiny_model

VOCABULARY = 512
HALF = [torch.float16, torch.bfloat16]


def tokens(windows: int = 32, length: int = 64) -> torch.Tensor:
    return torch.randint(
        2, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(0)
    )


def pair(dtype: torch.dtype):
    """A model in half precision, and its float32 copy."""
    model = tiny_model("llama", vocab_size=VOCABULARY)
    model.lm_head.weight.mul_(0.003)
    model.to(dtype)
    return model, copy.deepcopy(model).float()


@pytest.fixture
def gradients(monkeypatch):
    """Records the gradients that AdamW gets at its first step."""
    seen: list[list[torch.Tensor]] = []
    step = torch.optim.AdamW.step

    def record(adam, *args, **kwargs):
        weights = [each for group in adam.param_groups for each in group["params"]]
        seen.append([each.grad.clone() for each in weights if each.grad is not None])
        return step(adam, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    return seen


def treat(model, kind: str, name: str, **options) -> Context:
    plugin = load_plugins()[kind][name].value
    context = Context(tokens(), 0, list(range(len(anatomy(model).layers))))
    given = {
        "batch_size": 32,
        "micro_batch_size": 8,
        "max_grad_norm": None,
        "learning_rate": 1e-4,
        **options,
    }
    instance = plugin(plugin.Options.model_validate(given))
    with torch.set_grad_enabled(kind == "recovery"):
        (instance.recover if kind == "recovery" else instance.prune)(model, context)
    return context


TREATMENTS = {
    "lora": ("recovery", {"epochs": 1, "dropout": 0}),
    "finetune": ("recovery", {}),
    "imp": ("method", {"rounds": 1, "penalty": "l2", "strength": 1e-6}),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", TREATMENTS)
def test_gradients_are_those_of_float32(name, dtype, gradients):
    kind, options = TREATMENTS[name]
    half, full = pair(dtype)
    for model in (half, full):
        treat(model, kind, name, **options)
    middle = len(gradients) // 2
    ours, exact = (torch.cat([g.flatten() for g in each]) for each in gradients[::middle])
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.999
    assert float(ours.norm()) == pytest.approx(float(exact.norm()), rel=0.01)


def test_without_scaling_the_gradients_would_be_others(gradients, monkeypatch):
    monkeypatch.setattr(scaling, "START", 1.0)
    half, full = pair(torch.float16)
    for model in (half, full):
        treat(model, "recovery", "finetune")
    ours, exact = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) < 0.9


def test_float16_learns_as_float32_does():
    half, full = pair(torch.float16)
    given = {"epochs": 6, "learning_rate": 3e-3, "schedule": "constant"}
    ours, exact = (
        treat(model, "recovery", "finetune", scope="all", **given) for model in (half, full)
    )
    assert exact.notes["last_loss"] < exact.notes["first_loss"] - 0.1
    assert ours.notes["last_loss"] == pytest.approx(exact.notes["last_loss"], rel=1e-3)


def test_an_overflow_skips_the_update_halves_the_scale_and_repeats_the_batch():
    model, _ = pair(torch.float16)
    weight = model.model.layers[1].mlp.up_proj.weight.requires_grad_()
    calls = []

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(gradient.isfinite().all())
        return gradient * (float("inf") if len(calls) in {1, 4, 5} else 1)

    hook = weight.register_hook(overflow)
    context = treat(model, "recovery", "finetune", micro_batch_size=32, epochs=3)
    hook.remove()
    assert len(calls) == 6
    assert context.notes["skipped_updates"] == 3
    assert context.notes["steps"] == 3
    assert context.trained_tokens == 6 * tokens().numel()


def test_a_gradient_that_stays_infinite_is_an_error_that_changes_nothing():
    model, before = pair(torch.float16)
    weight = model.model.layers[1].mlp.up_proj.weight.requires_grad_()
    hook = weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(PrunebenchError, match=r"step 1 of 1: the gradient of .*1\.mlp\.up_proj"):
        treat(model, "recovery", "finetune")
    hook.remove()
    for ours, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours.float(), other)


def test_the_scale_grows_after_many_updates_and_never_falls_below_one():
    scale = LossScale(torch.nn.Linear(1, 1).half())
    for _ in range(GROW_AFTER):
        assert scale.factor == START
        scale.updated()
    assert scale.factor == 2 * START
    while scale.overflowed():
        pass
    assert (scale.factor, scale.overflows) == (1, 17)
    for dtype in (torch.float32, torch.bfloat16):
        other = LossScale(torch.nn.Linear(1, 1).to(dtype))
        for _ in range(GROW_AFTER):
            other.updated()
        assert other.factor == 1
        assert not other.overflowed()


@pytest.mark.parametrize("dtype", HALF)
def test_micro_batches_are_added_up_in_float32(dtype, gradients):
    """One window at a time gives the gradient of all at once."""
    for size in (1, 32):
        model, _ = pair(dtype)
        treat(model, "recovery", "finetune", micro_batch_size=size)
    ours, exact = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.999


def test_the_loss_scale_has_the_constants_of_torchs():
    theirs = torch.amp.GradScaler("cpu")
    model, _ = pair(torch.float16)
    assert START == LossScale(model).factor == theirs._init_scale
    assert theirs.get_growth_interval() == GROW_AFTER
    ours = LossScale(model)
    for _ in range(GROW_AFTER - 1):
        ours.updated()
    assert ours.factor == START
    ours.updated()
    assert ours.factor == START * theirs.get_growth_factor()
    for _ in range(GROW_AFTER - 1):  # counted anew
        ours.updated()
    assert ours.factor == START * theirs.get_growth_factor()
    assert ours.overflowed()
    assert ours.factor == START * theirs.get_growth_factor() * theirs.get_backoff_factor()


def test_the_loss_scale_grows_while_a_model_is_trained(monkeypatch):
    monkeypatch.setattr(scaling, "GROW_AFTER", 2)
    seen: list[float] = []
    step = Optimiser.step

    def record(self, rate, loss_scale=1.0) -> None:
        seen.append(loss_scale)
        step(self, rate, loss_scale)

    monkeypatch.setattr(Optimiser, "step", record)
    model, exact = pair(torch.float16)
    treat(model, "recovery", "finetune", batch_size=8)
    assert seen == [START, START, 2 * START, 2 * START]
    seen.clear()
    treat(exact, "recovery", "finetune", batch_size=8)
    assert seen == [1.0] * 4


@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_is_computed_in_float32(dtype):
    model, _ = pair(dtype)
    model.lm_head.weight.mul_(1000)
    windows = tokens(2)
    model.requires_grad_(requires_grad=True)
    with torch.enable_grad():
        found = next_token_backward(model, windows, 1.0)
    with torch.no_grad():
        logits = model(input_ids=windows[:, :-1]).logits.flatten(0, 1)
    exact = torch.nn.functional.cross_entropy(
        logits.double(), windows[:, 1:].flatten(), reduction="sum"
    )
    assert found == pytest.approx(float(exact), rel=1e-6)
