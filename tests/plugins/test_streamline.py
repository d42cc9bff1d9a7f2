"""Streamline: what is trained, on which states, by which schedule; what is refused."""

from __future__ import annotations

import functools
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunebench import Context, PrunebenchError, Recovery, anatomy, load_pruned
from prunebench.model.checkpoint import save
from prunebench.model.dense_source import CheckpointSource
from prunebench.plugin.host import load_plugins
from prunebench_plugins.streamline_training import Recipe, WindowStates
from tiny import tiny_checkpoint, tiny_model

IDS = torch.randint(2, 320, (8, 12), generator=torch.Generator().manual_seed(3))
IDS[-1] = IDS[0]  # random windows can only be learnt by heart, and the last one is held out
SHORT = {"batch_size": 2, "gradient_accumulation_step": 1, "lr": 1e-2, "epoches": 3}


@functools.cache
def registered() -> type[Recovery]:
    found: type[Recovery] = load_plugins()["recovery"]["streamline"].value
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with five layers of each family."""
    place = tmp_path_factory.mktemp("dense")
    return {
        family: tiny_checkpoint(place / family, family, num_hidden_layers=5)
        for family in ("llama", "opt", "qwen2")
    }


def cut(folder: Path, removed: list[int], family: str = "llama", seed: int = 0):
    """A model without these layers, and the context of a recovery."""
    model = tiny_model(family, num_hidden_layers=5)
    context = Context(IDS, seed, list(range(5)), dense_source=CheckpointSource(folder, "float32"))
    context.remove_layers(model, removed)
    return model, context


def recover(model, context, **options: Any) -> Context:
    with torch.enable_grad():
        registered()(registered().Options.model_validate(options)).recover(model, context)
    return context


def states(model, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The input of each layer and the output of the last."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output: found.extend((args[0], output)), with_kwargs=True
        )
        for layer in anatomy(model).layers
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return [*found[::2], found[-1]]


def test_planning_knows_that_it_replaces_layers() -> None:
    """What follows from that: tests/suite/test_recoveries.py."""
    assert load_plugins()["recovery"]["streamline"].value.replaces_layers


def test_the_defaults_are_those_of_the_released_code() -> None:
    assert registered().Options().model_dump() == {
        "replacement": "layer", "intermediate_size": None, "absorb": True, "loss": "mse",
        "lr": 2e-4, "min_lr": 5e-5, "wd": 1e-3, "epoches": 1, "batch_size": 8,
        "gradient_accumulation_step": 16, "max_norm": 5.0, "val_share": 0.03, "eval_steps": None,
        "mode": "clean",
    }  # fmt: skip
    mse = Recipe.of(registered().Options(), 2000)
    llm = Recipe.of(registered().Options(loss="llm"), 2000)
    assert (mse.batch_size, mse.micro_batch_size, mse.betas()) == (128, 8, (0.9, 0.999))
    assert (mse.max_grad_norm, llm.max_grad_norm, llm.betas()) == (5.0, None, (0.9, 0.95))
    assert (mse.val_windows, mse.eval_steps) == (60, 16)  # 1940 windows are 16 steps an epoch


@settings(max_examples=40, deadline=None)
@given(
    windows=st.integers(2, 400),
    batch=st.integers(1, 9),
    accumulated=st.integers(1, 5),
    epochs=st.integers(1, 3),
    loss=st.sampled_from(["mse", "llm"]),
)
def test_the_learning_rate_falls_from_its_peak_to_its_minimum(
    windows, batch, accumulated, epochs, loss
) -> None:
    options = registered().Options(
        batch_size=batch, gradient_accumulation_step=accumulated, epoches=epochs, loss=loss
    )
    recipe = Recipe.of(options, windows)
    fit = windows - recipe.val_windows
    steps = recipe.steps(fit)
    assert steps == epochs * math.ceil(fit / (batch * accumulated))
    rates = [recipe.rate(step, steps) for step in range(steps)]
    warmup = int({"mse": 0.01, "llm": 0.02}[loss] * steps)
    assert max(rates) == pytest.approx(2e-4)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(rate > 0 and (rate >= 5e-5 or step < warmup) for step, rate in enumerate(rates))
    if steps > 50:
        assert rates[-1] < 5.1e-5


@settings(max_examples=40, deadline=None)
@given(
    passes=st.integers(4, 90), accumulated=st.integers(1, 4), epochs=st.integers(1, 3),
    loss=st.sampled_from(["mse", "llm"]),
)  # fmt: skip
def test_the_reference_schedule_is_the_released_loop(passes, accumulated, epochs, loss) -> None:
    """A plain rendering of the released loops, forward pass by forward pass."""
    peak, low = 2e-4, 5e-5
    length, share = 0.5 * passes * epochs, {"mse": 0.01, "llm": 0.02}[loss]

    def released(at: int) -> float:
        if at < share * length:
            return peak * at / max(1, share * length)
        done = (at - share * length) / max(1, length - share * length)
        return low + max(0, 0.5 * (1 + math.cos(math.pi * done))) * (peak - low)

    wanted, moved = [], 0
    for _ in range(epochs):
        for number in range(1, passes + 1):
            full = number % accumulated == 0
            if full or (loss == "llm" and number == passes):  # accelerate steps at the end, too
                wanted.append(released(moved))
                moved += loss == "mse"
            moved += loss == "llm"
    options = registered().Options(
        batch_size=2, gradient_accumulation_step=accumulated, epoches=epochs, loss=loss,
        mode="reference", val_share=None,
    )  # fmt: skip
    recipe = Recipe.of(options, 2 * passes)
    steps = recipe.steps(2 * passes)
    assert [recipe.rate(step, steps) for step in range(steps)] == pytest.approx(wanted)
    assert recipe.keeps_best() == (loss == "llm")


def first_windows(seed: int = 0, size: int = 2) -> torch.Tensor:
    """The windows of a training's first batch."""
    generator = torch.Generator().manual_seed(seed)
    torch.randint(2**31, (), generator=generator)  # a training draws a seed for dropout first
    return IDS[torch.randperm(len(IDS), generator=generator)[:size]]


@pytest.mark.parametrize(
    ("removed", "absorb", "window"),
    [([2, 3], True, [1, 3]), ([2, 3], False, [2, 3]), ([0, 1], True, [0, 1]), ([4], True, [3, 4])],
)
def test_the_loss_is_the_error_of_the_dense_states(removed, absorb, window, folders) -> None:
    model, context = cut(folders["llama"], removed)
    recover(model, context, **SHORT, val_share=None, absorb=absorb)
    assert context.notes["replaced_layers"] == window
    assert context.removed_layers == list(range(window[0] + 1, window[1] + 1))
    dense = states(tiny_model("llama", num_hidden_layers=5), first_windows())
    # The replacement begins as the window's first layer.
    wanted = (dense[window[0] + 1] - dense[window[1] + 1]).square().mean()
    assert context.notes["first_loss"] == pytest.approx(float(wanted), rel=1e-4)
    assert context.notes["last_loss"] < context.notes["first_loss"]
    assert context.notes["layer"] == context.kept_layers.index(window[0])
    assert context.trained_tokens == 3 * IDS.numel()


def test_in_reference_mode_the_last_window_ends_behind_the_final_norm(folders) -> None:
    model, context = cut(folders["llama"], [4])
    recover(model, context, **SHORT, val_share=None, mode="reference")
    whole = tiny_model("llama", num_hidden_layers=5)
    dense = states(whole, first_windows())
    with torch.no_grad():
        wanted = (dense[4] - anatomy(whole).final_norm(dense[5])).square().mean()
    assert context.notes["first_loss"] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", "llm"])
@pytest.mark.parametrize("family", ["llama", "opt", "qwen2"])
def test_only_the_replacement_learns_and_the_result_is_a_plain_model(
    family, loss, folders, tmp_path
) -> None:
    model, context = cut(folders[family], [2, 3], family)
    before = {name: each.clone() for name, each in model.named_parameters()}
    recover(model, context, **SHORT, loss=loss)
    path = f"{anatomy(model).layers_path}.1."
    for name, each in model.named_parameters():
        # The keys' bias changes no attention, so its gradient is zero but for rounding.
        if "k_proj.bias" not in name:
            assert torch.equal(each, before[name]) == (not name.startswith(path)), name
    first, *others = (each for _, each in context.notes["validation_curve"])
    assert len(others) == 3  # after each epoch
    assert min(others) < first
    assert context.notes["first_validation_loss"] == pytest.approx(first, rel=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("network", ["mlp", "swiglu"])
@pytest.mark.parametrize("loss", ["mse", "llm"])
def test_a_network_is_trained_and_loaded_again(network, loss, folders, tmp_path) -> None:
    model, context = cut(folders["llama"], [2, 3])
    recover(model, context, **SHORT, replacement=network, loss=loss)
    layer = anatomy(model).layers[1]
    assert layer.replacement.width == {"mlp": 4 * 48, "swiglu": 80}[network]
    notes = context.notes
    assert notes["best_validation_loss"] < notes["first_validation_loss"]
    assert notes["trained_parameters"] == sum(each.numel() for each in layer.parameters())
    save(model, None, tmp_path / "pruned", made_by={})
    assert torch.equal(load_pruned(tmp_path / "pruned")(IDS).logits, model(IDS).logits)


def held_out_error(model, window: list[int]) -> float:
    """The replacement's error on the last window, which is held out."""
    dense = states(tiny_model("llama", num_hidden_layers=5), IDS[-1:])
    ours = states(model, IDS[-1:])
    return float((ours[window[0] + 1] - dense[window[1] + 1]).square().mean())


@pytest.mark.parametrize(("mode", "kept"), [("clean", min), ("reference", lambda each: each[-1])])
def test_the_best_weights_are_kept_as_copies_and_not_the_last_ones(mode, kept, folders) -> None:
    model, context = cut(folders["llama"], [2, 3])
    recover(model, context, **{**SHORT, "lr": 0.3, "min_lr": 0.3, "epoches": 4}, mode=mode)
    losses = [loss for _, loss in context.notes["validation_curve"]]
    assert losses[-1] > 1.05 * min(losses)  # so that the last weights are not the best
    assert held_out_error(model, [1, 3]) == pytest.approx(kept(losses), rel=1e-4)


def test_a_training_that_only_does_harm_ends_where_it_began(folders) -> None:
    model, context = cut(folders["llama"], [2, 3])
    before = model(IDS).logits
    recover(model, context, **{**SHORT, "lr": 5.0, "min_lr": 5.0})
    assert context.notes["best_step"] == 0
    assert torch.equal(model(IDS).logits, before)


def test_the_reference_trains_every_layer_whose_number_begins_like_that() -> None:
    model = tiny_model("llama", num_hidden_layers=13)
    context = Context(IDS, 0, list(range(13)))
    context.remove_layers(model, [2])
    before = {name: each.clone() for name, each in model.named_parameters()}
    recover(model, context, **SHORT, loss="llm", mode="reference")
    changed = {
        int(name.split(".")[2])
        for name, each in model.named_parameters()
        if not torch.equal(each, before[name])
    }
    assert changed == {1, 10, 11}


def test_the_reference_starts_opt_with_random_weights(folders) -> None:
    losses = []
    for mode in ("clean", "reference"):
        model, context = cut(folders["opt"], [2, 3], "opt")
        recover(model, context, **SHORT, mode=mode)
        losses.append(context.notes["first_validation_loss"])
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("documents", [4, 8])
def test_memory_holds_the_states_of_one_batch(documents, folders, monkeypatch) -> None:
    living: list[Any] = []
    most = 0
    original = WindowStates._states

    def watched(self, tokens):
        nonlocal most
        found = original(self, tokens)
        living[:] = [each for each in living if each() is not None]
        living.extend(weakref.ref(each) for each in found[:2])
        most = max(most, len(living))
        assert all(len(each()) <= 2 for each in living)  # windows of a forward pass
        return found

    monkeypatch.setattr(WindowStates, "_states", watched)
    model, context = cut(folders["llama"], [2, 3])
    context.calibration = IDS[:documents]
    recover(model, context, **SHORT)
    assert most == 2  # in front of the window, and behind it


def test_accumulated_passes_give_the_step_of_one_pass(folders) -> None:
    logits = []
    for sizes in ((4, 1), (2, 2), (1, 4)):
        model, context = cut(folders["llama"], [2, 3])
        given = dict(zip(("batch_size", "gradient_accumulation_step"), sizes, strict=True))
        recover(model, context, **{**SHORT, **given}, val_share=None)
        assert context.notes["steps"] == 6
        logits.append(model(IDS).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-4, atol=1e-4)


def test_padding_of_instruction_data_does_not_count(folders) -> None:
    curves = []
    counted = torch.arange(12) < torch.tensor([6, 12] * 4)[:, None]  # every other row is shorter
    for padding in (7, 9):
        model, context = cut(folders["llama"], [2, 3])
        context.calibration, context.counted = IDS.masked_fill(~counted, padding), counted
        recover(model, context, **SHORT)
        curves.append([loss for _, loss in context.notes["loss_curve"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert context.trained_tokens == 3 * (4 * 6 + 3 * 12)  # without the held-out row


@pytest.mark.parametrize(
    ("removed", "options", "said", "hint"),
    [
        ([], {}, "no decoder layer was removed", "llm-streamline"),
        ([0, 2], {}, "layer 1 is left between the removed layers 0, 2", "metric: angular"),
        (
            [2],
            {"mode": "reference", "batch_size": 1, "gradient_accumulation_step": 16},
            "7 forward passes of 1 windows fill no optimiser step of 16",
            "gradient_accumulation_step",
        ),
        ([2], {"val_share": 0.99, "batch_size": 8, "windows": 1}, "are held out", "val"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_error(removed, options, said, hint, folders) -> None:
    model, context = cut(folders["llama"], removed)
    context.calibration = IDS[: options.pop("windows", 8)]
    with pytest.raises(PrunebenchError, match=said) as caught:
        recover(model, context, **options)
    assert hint in caught.value.hint


def test_a_model_in_memory_has_no_dense_layers_to_learn_from() -> None:
    model = tiny_model("llama")
    context = Context(IDS, 0, list(range(4)))
    context.remove_layers(model, [2])
    with pytest.raises(PrunebenchError, match="the model came without its checkpoint"):
        recover(model, context, **SHORT)
