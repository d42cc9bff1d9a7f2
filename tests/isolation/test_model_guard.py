"""What a plugin leaves on a model is removed, flagged, or fails the cell."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from prunebench.errors import PrunebenchError
from prunebench.isolation.flags import Flags
from prunebench.isolation.model_guard import ModelGuard, first_not_finite
from tiny import tiny_model


def double(factor: int, module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * factor


@pytest.fixture
def model():
    return tiny_model("llama").eval().requires_grad_(requires_grad=False)


def test_a_clean_model_has_no_flags(model) -> None:
    flags = Flags()
    ModelGuard(model, "the method").check(model, flags)
    assert flags.found == []


def test_a_hook_that_stays_fails_the_check_and_is_named(model) -> None:
    guard = ModelGuard(model, "the method")
    model.model.layers[1].register_forward_hook(partial(double, 2))
    with pytest.raises(
        PrunebenchError, match=r"the method left a hook on model\.layers\.1: double"
    ):
        guard.check(model, Flags())


def test_a_hook_that_was_there_before_may_stay(model) -> None:
    model.model.layers[1].register_forward_hook(partial(double, 2))
    ModelGuard(model, "the method").check(model, Flags())


def test_restoring_removes_the_hook_and_flags_it(model) -> None:
    flags = Flags()
    guard = ModelGuard(model, "the metric")
    model.lm_head.register_forward_hook(partial(double, 2))
    guard.restore(model, flags)
    assert not model.lm_head._forward_hooks
    assert flags.found == [f"the metric left a hook, double of {__name__}; removed"]


def test_training_mode_and_gradients_are_reset_and_flagged(model) -> None:
    flags = Flags()
    guard = ModelGuard(model, "the method")
    model.train().requires_grad_(requires_grad=True)
    guard.check(model, flags)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [flag.partition(" on ")[0] for flag in flags.found] == [
        "the method left the model in training mode; restored",
        "the method left gradients",
    ]


def test_another_dtype_is_flagged(model) -> None:
    flags = Flags()
    guard = ModelGuard(model, "the method")
    model.model.layers[0].to(torch.bfloat16)
    guard.check(model, flags)
    [flag] = flags.found
    assert flag.startswith("the method left model.layers.0.self_attn.q_proj.weight and ")
    assert flag.endswith(" others as torch.bfloat16; they are measured like that")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_found(model, value: float) -> None:
    assert first_not_finite(model) is None
    model.model.norm.weight[3] = value
    assert first_not_finite(model) == "model.norm.weight"
    with pytest.raises(PrunebenchError, match=r"model\.norm\.weight: some weights are not finite"):
        ModelGuard(model, "the method").check(model, Flags())
