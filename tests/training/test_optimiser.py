"""The optimiser: penalties are what they say, half precision is added up in float32, no hook stays."""

from __future__ import annotations

import pytest
import torch

from prunebench import Penalty
from prunebench.training.optimiser import NotFiniteError, Optimiser, Trainable
from prunebench.training.settings import TrainingSettings


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learning(dtype: torch.dtype = torch.float32, *shape: int) -> torch.Tensor:
    return drawn(*(shape or (3, 4))).to(dtype).requires_grad_()


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_the_gradient_of_a_penalty_is_that_of_strength_times_the_sum_of_powers(kind, power):
    weight = learning()
    (0.3 * weight.abs().pow(power).sum()).backward()
    gradient = drawn(3, 4, seed=1)
    expected = gradient + weight.grad
    Penalty(kind, 0.3).add_gradient(weight.detach(), gradient)
    torch.testing.assert_close(gradient, expected)


def test_a_penalty_is_added_after_the_loss_scale_is_taken_out():
    """With a loss gradient of zero, the first step of AdamW shows the sign of the penalty's."""
    for scale in (1.0, 2.0**16):
        weight = learning()
        before = weight.detach().clone()
        settings = TrainingSettings(learning_rate=0.1, max_grad_norm=None)
        with Optimiser(Trainable({"w": weight}, penalty=Penalty("l2", 1e-6)), settings) as adam:
            (0 * weight).sum().backward()
            adam.step(0.1, scale)
        assert torch.equal(
            weight.sign() * (before.abs() > 0.2), before.sign() * (before.abs() > 0.2)
        )
        moment = adam.adam.state[weight]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * 2e-6 * before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_of_many_passes_are_not_lost_in_half_precision(dtype):
    weight = torch.zeros(2, 2, dtype=dtype, requires_grad=True)
    settings = TrainingSettings(learning_rate=1.0, max_grad_norm=None)
    with Optimiser(Trainable({"w": weight}), settings) as adam:
        for size in [1.0] + [2.0**-12] * 4096:  # each is below half a unit in the last place of 1
            (size * weight).sum().backward()
            assert weight.grad is None
        assert adam.weights["w"].dtype == torch.float32
        assert torch.equal(adam.weights["w"].grad, torch.full((2, 2), 2.0))


def test_gradients_are_clipped_to_the_norm_of_all_parameters_together():
    first, second = learning(), learning(torch.float16, 5)
    settings = TrainingSettings(learning_rate=0.1, max_grad_norm=0.5)
    with Optimiser(Trainable({"a": first, "b": second}), settings) as adam:
        (3 * first).sum().backward()
        (4 * second).sum().backward()
        adam.step(0.0)
    moments = [adam.adam.state[weight]["exp_avg"] / 0.1 for weight in adam.weights.values()]
    assert float(torch.cat([each.flatten() for each in moments]).norm()) == pytest.approx(0.5)
    assert float(moments[0][0, 0] / moments[1][0]) == pytest.approx(3 / 4)


def test_an_update_that_is_refused_changes_nothing_and_leaves_no_gradient():
    weight, other = learning(), learning()
    before = weight.detach().clone()
    with Optimiser(Trainable({"w": weight, "o": other}), TrainingSettings()) as adam:
        (weight.sum() + other.sum() * float("inf")).backward()
        with pytest.raises(NotFiniteError, match=r"^o$"):
            adam.step(0.1)
        assert weight.grad is None
        assert torch.equal(weight, before)
        weight.sum().backward()
        adam.step(0.1)
    assert not torch.equal(weight, before)


def test_no_hook_stays_on_a_parameter():
    weight = learning(torch.bfloat16)
    with Optimiser(Trainable({"w": weight}), TrainingSettings()):
        assert weight._post_accumulate_grad_hooks
    assert not weight._post_accumulate_grad_hooks


def test_the_first_parameter_with_one_bad_gradient_is_named():
    weights = {name: learning() for name in "abc"}
    with Optimiser(Trainable(weights), TrainingSettings()) as adam:
        sum(each.sum() for each in weights.values()).backward()
        weights["b"].grad[1, 2] = float("inf")
        weights["c"].grad.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match=r"^b$"):
            adam.step(0.1)


def test_all_weights_are_updated_in_one_kernel_only_where_torch_has_it():
    here, elsewhere = learning(), torch.empty(2, 2, device="meta", requires_grad=True)
    assert Optimiser(Trainable({"a": here}), TrainingSettings()).adam.defaults["fused"]
    both = Optimiser(Trainable({"a": here, "b": elsewhere}), TrainingSettings())
    assert not both.adam.defaults["fused"]


@pytest.mark.parametrize("scale", [1.0, 8.0, 2.0**16])
def test_the_loss_scale_is_taken_out_of_the_gradients(scale):
    weight = learning()
    settings = TrainingSettings(learning_rate=0.1, max_grad_norm=None)
    with Optimiser(Trainable({"w": weight}), settings) as adam:
        (scale * weight * drawn(3, 4, seed=1)).sum().backward()
        adam.step(0.1, scale)
    moment = adam.adam.state[weight]["exp_avg"]
    torch.testing.assert_close(moment, 0.1 * drawn(3, 4, seed=1))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_has_the_settings_decay_and_otherwise_torchs_own_constants(decay):
    settings = TrainingSettings(learning_rate=0.3, weight_decay=decay)
    ours = Optimiser(Trainable({"w": learning()}), settings).adam.defaults
    theirs = torch.optim.AdamW([learning()], lr=0.3, weight_decay=decay, fused=True).defaults
    assert ours == theirs


def test_each_step_has_its_own_rate():
    weight = learning()
    settings = TrainingSettings(learning_rate=1.0, max_grad_norm=None)
    with Optimiser(Trainable({"w": weight}), settings) as adam:
        for rate in (0.25, 0.0, 0.5):
            before = weight.detach().clone()
            weight.sum().backward()
            adam.step(rate)
            torch.testing.assert_close(before - weight, torch.full((3, 4), rate))
