"""How many steps a training takes, and the learning rate at each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench.training.settings import TrainingSettings


def settings(**given: object) -> TrainingSettings:
    return TrainingSettings.model_validate(given)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 12), st.none() | st.integers(1, 60))
def test_steps_and_windows_seen_are_those_of_counting(windows, epochs, batch, most):
    plan = settings(epochs=epochs, batch_size=batch, max_steps=most)
    sizes = [
        min(batch, windows - start) for _ in range(epochs) for start in range(0, windows, batch)
    ][:most]
    assert plan.steps(windows) == len(sizes)
    assert plan.windows_seen(windows) == sum(sizes)


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(0, 50), st.integers(1, 200))
def test_the_rate_rises_to_its_peak_then_never_rises_and_is_always_positive(
    schedule, warmup, steps
):
    plan = settings(schedule=schedule, warmup_steps=warmup, learning_rate=0.5)
    rates = [plan.rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    top = rates.index(max(rates))
    assert max(rates) == 0.5
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_warm_up_takes_at_most_a_tenth_of_the_steps():
    plan = settings(warmup_steps=100, learning_rate=1.0, schedule="constant")
    assert [plan.rate(step, 20) for step in range(3)] == [0.5, 1.0, 1.0]
    assert plan.rate(98, 10_000) == pytest.approx(0.99)


def test_linear_and_cosine_reach_half_in_the_middle():
    assert settings(schedule="linear", learning_rate=1.0).rate(5, 10) == pytest.approx(0.5)
    assert settings(schedule="cosine", learning_rate=1.0).rate(5, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"epochs": 0},
        {"schedule": "step"},
        {"max_grad_norm": 0.0},
        {"rate": 1.0},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_defaults():
    assert settings().model_dump() == {
        "learning_rate": 1e-4,
        "epochs": 1,
        "max_steps": None,
        "batch_size": 8,
        "micro_batch_size": 4,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "schedule": "linear",
        "max_grad_norm": 1.0,
        "val_windows": None,
        "val_share": None,
        "eval_steps": 100,
    }


def test_cosine_and_linear_have_their_known_values():
    cosine = settings(schedule="cosine", learning_rate=1.0)
    assert [cosine.rate(step, 4) for step in range(4)] == pytest.approx(
        [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    )
    linear = settings(schedule="linear", learning_rate=1.0, warmup_steps=1)
    assert [linear.rate(step, 5) for step in range(5)] == pytest.approx([1, 1, 0.75, 0.5, 0.25])
