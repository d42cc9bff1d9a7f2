"""Iterative magnitude pruning: the invariants of its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prunebench import Context, PrunebenchError, TrainingOptions, anatomy
from prunebench.plugin.host import load_plugins
from tiny import VOCABULARY, tiny_model

TRAINING = {"learning_rate": 3e-3, "batch_size": 4, "schedule": "constant"}


class Spy(Context):
    """Keep the masks of every training, its steps, and the weights before and after it."""

    def train(self, model, parameters, settings, *, masks=None, penalty=None, part=None):
        seen = self.__dict__.setdefault("seen", [])
        seen.append(({name: mask.clone() for name, mask in masks.items()}, penalty))
        self.__dict__.setdefault("parts", []).append(part)
        around = [{name: each.detach().clone() for name, each in parameters.items()}]
        log = super().train(model, parameters, settings, masks=masks, penalty=penalty, part=part)
        around.append({name: each.detach().clone() for name, each in parameters.items()})
        self.__dict__.setdefault("around", []).append(around)
        return log


def prune(model, method: str = "imp", **options) -> Spy:
    kind = load_plugins()["method"][method].value
    tokens = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
    context = Spy(tokens, 0, list(range(len(anatomy(model).layers))))
    with torch.no_grad():
        kind(kind.Options.model_validate(options)).prune(model, context)
    return context


def weights(model) -> dict[str, torch.Tensor]:
    found = Context(None, 0, []).linears(model)
    return {f"{path}.weight": linear.weight.detach() for path, linear in found.items()}


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in weights(model).items()}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_are_nested_and_exact_and_their_weights_stay_zero(scope):
    model = tiny_model("qwen2")
    context = prune(
        model,
        sparsity=0.7,
        rounds=3,
        scope=scope,
        after_round="finetune",
        weight_decay=0.1,
        **TRAINING,
    )
    masks = [masks for masks, _ in context.seen]
    assert len(masks) == 3
    for done, mask in enumerate(masks, start=1):
        share = 1 - 0.3 ** (done / 3) if done < 3 else 0.7
        if scope == "layer":
            assert all(int(one.sum()) == int(one.numel() * share) for one in mask.values())
        else:
            total = sum(one.numel() for one in mask.values())
            assert sum(int(one.sum()) for one in mask.values()) == int(total * share)
    for earlier, later in itertools.pairwise(masks):
        assert all(bool((later[name] | ~earlier[name]).all()) for name in earlier)
    assert all(torch.equal(zeros(model)[name], masks[-1][name]) for name in masks[-1])
    assert context.trained_tokens == 3 * 4 * 12
    assert context.notes["trainings"][-1]["last_loss"] < context.notes["trainings"][0]["first_loss"]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_one_round_without_training_is_magnitude(family):
    ours, magnitude = tiny_model(family), tiny_model(family)
    context = prune(ours, sparsity=0.45, rounds=1, after_round="none")
    prune(magnitude, "magnitude", sparsity=0.45)
    assert "seen" not in vars(context)
    assert all(map(torch.equal, ours.parameters(), magnitude.parameters()))


@settings(max_examples=12)
@given(st.floats(0, 0.94), st.sampled_from([0.0, 0.05]), st.integers(0, 50))
def test_the_global_scope_is_one_threshold_with_a_guard(sparsity, density, seed):
    """Compare with a sort of all weights that puts the largest of every matrix at the end."""
    model = tiny_model("llama", seed=seed, num_hidden_layers=2)
    with torch.no_grad():
        for number, linear in enumerate(Context(None, 0, []).linears(model).values()):
            linear.weight.mul_(
                0.1 if number == 3 else 1.0
            )  # a matrix that a global threshold would empty
            linear.weight.copy_((linear.weight * 64).round() / 64)  # full of ties
    before = {name: weight.clone() for name, weight in weights(model).items()}
    flat = []
    for weight in before.values():
        score = weight.abs().flatten().double()
        protected = -int(-density * score.numel() // 1)
        score[score.argsort(stable=True)[score.numel() - protected :]] = 1e9
        flat.append(score)
    order = torch.cat(flat).argsort(stable=True)
    expected = torch.zeros(order.numel(), dtype=torch.bool)
    expected[order[: int(order.numel() * sparsity)]] = True
    after = torch.cat([weight.flatten() for weight in before.values()]).masked_fill(expected, 0)
    prune(
        model, sparsity=sparsity, rounds=1, scope="global", min_density=density, after_round="none"
    )
    assert torch.equal(torch.cat([weight.flatten() for weight in weights(model).values()]), after)


def test_rewinding_resets_the_survivors_and_prunes_by_the_trained_weights():
    model, dense = tiny_model("llama"), tiny_model("llama")
    context = prune(
        model,
        sparsity=0.6,
        rounds=2,
        after_round="rewind",
        finetune_after=False,
        epochs=4,
        **TRAINING | {"learning_rate": 2e-2},
    )
    assert len(context.seen) == 2
    one_shot = tiny_model("llama")
    prune(one_shot, "magnitude", sparsity=0.6)
    for name, weight in weights(model).items():
        gone = weight == 0
        assert torch.equal(weight[~gone], weights(dense)[name][~gone])
        assert int(gone.sum()) == int(gone.numel() * 0.6)
    assert any(not torch.equal(mask, zeros(one_shot)[name]) for name, mask in zeros(model).items())


def test_a_ticket_is_trained_at_the_end_and_keeps_its_mask():
    model, dense = tiny_model("llama"), weights(tiny_model("llama"))
    context = prune(model, sparsity=0.6, rounds=2, after_round="rewind", **TRAINING)
    assert len(context.seen) == 3
    last, _ = context.seen[-1]
    assert all(torch.equal(mask, last[name]) for name, mask in zeros(model).items())
    before, after = context.around[-1]
    for name, weight in weights(model).items():
        assert torch.equal(before[name], dense[name].masked_fill(last[name], 0))
        assert torch.equal(weight, after[name])
        assert not torch.equal(weight, before[name])


def test_survivors_are_rewound_to_a_later_step():
    options = {"sparsity": 0.6, "rounds": 2, "after_round": "rewind", "epochs": 4, "batch_size": 2}
    options |= {"learning_rate": 1e-2, "schedule": "linear"}
    model = tiny_model("llama")
    context = prune(model, rewind_step=3, **options)
    assert context.parts == [range(3), range(3, 8), range(3, 8), range(3, 8)]
    _, start = context.around[0]
    dense = weights(tiny_model("llama"))
    for number in (1, 2, 3):
        mask, _ = context.seen[number]
        before, _ = context.around[number]
        for name, weight in before.items():
            assert torch.equal(weight, start[name].masked_fill(mask[name], 0)), (number, name)
            assert not torch.equal(start[name], dense[name])
    assert context.trained_tokens == (3 + 3 * 5) * 2 * 12
    assert [each["steps"] for each in context.notes["trainings"]] == [3, 5, 5, 5]


def test_a_step_after_the_training_is_an_error():
    with pytest.raises(PrunebenchError, match=r"no training after step 4.* take 4 optimiser"):
        prune(tiny_model("llama"), after_round="rewind", rewind_step=4, epochs=4, **TRAINING)


def test_windows_that_are_held_out_give_no_steps_to_rewind_to():
    """Four windows, two of them held out, in batches of one: two steps an epoch."""
    options = {"after_round": "rewind", "rounds": 1, "batch_size": 1, "val_windows": 2}
    context = prune(tiny_model("llama"), rewind_step=1, **options)
    assert context.parts == [range(1), range(1, 2), range(1, 2)]
    with pytest.raises(PrunebenchError, match=r"no training after step 2.* take 2 optimiser"):
        prune(tiny_model("llama"), rewind_step=2, **options)


def test_the_quality_parameter_is_a_threshold_in_standard_deviations():
    model = tiny_model("llama")
    before = weights(tiny_model("llama"))
    prune(model, quality=0.8, rounds=1, after_round="none")
    for name, weight in weights(model).items():
        deviation = before[name].std(correction=0)
        assert torch.equal(weight == 0, before[name].abs() < 0.8 * deviation), name
        assert 0.5 < float((weight == 0).float().mean()) < 0.65  # of a normal distribution: 0.576


def test_later_rounds_measure_the_deviation_of_the_survivors():
    model = tiny_model("llama")
    context = prune(model, quality=0.5, rounds=2, after_round="none")
    first = tiny_model("llama")
    prune(first, quality=0.5, rounds=1, after_round="none")
    for name, weight in weights(first).items():
        survivors = weight[weight != 0]
        expected = weight.abs() < 0.5 * survivors.std(correction=0)
        assert torch.equal(weights(model)[name] == 0, expected), name
    assert 0 < context.notes["shares"][0] < context.notes["shares"][1]


def test_a_quality_parameter_that_removes_a_whole_matrix_is_an_error():
    with pytest.raises(PrunebenchError, match="a quality parameter of 50 removes all weights"):
        prune(tiny_model("llama"), quality=50, rounds=1, after_round="none")


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({}, {"min_density", "strength", "rewind_step"}),
        ({"penalty": "l1", "scope": "global"}, {"rewind_step"}),
        ({"quality": 1.0}, {"sparsity", "scope", "min_density", "strength", "rewind_step"}),
        ({"after_round": "rewind"}, {"min_density", "strength"}),
        (
            {"after_round": "none"},
            {"min_density", "strength", "rewind_step", *TrainingOptions.model_fields},
        ),
        ({"after_round": "none", "penalty": "l2"}, {"min_density", "rewind_step"}),
        (
            {"after_round": "none", "finetune_after": True},
            {"min_density", "strength", "rewind_step"},
        ),
        (
            {"rounds": 1, "finetune_after": False},
            {"min_density", "strength", "rewind_step", *TrainingOptions.model_fields},
        ),
    ],
)
def test_options_that_change_nothing_are_named(options, without):
    kind = load_plugins()["method"]["imp"].value
    parsed = kind.Options.model_validate(options)
    assert set(parsed.without_effect()) == without
    trains = not without >= TrainingOptions.model_fields.keys()
    assert kind.needs_calibration_for(parsed) == kind.uses_seed_for(parsed) == trains


def test_a_rewind_step_beyond_max_steps_is_refused():
    kind = load_plugins()["method"]["imp"].value
    with pytest.raises(ValidationError, match="`rewind_step` must be less than `max_steps`"):
        kind.Options.model_validate({"after_round": "rewind", "rewind_step": 5, "max_steps": 5})


def test_only_cells_whose_outcome_changed_have_new_ids():
    """Without a last training, null after rewinding once meant something else."""
    options = load_plugins()["method"]["imp"].value.Options
    for after in ("finetune", "none"):
        assert options(after_round=after).finetune_after is None
    assert options(after_round="rewind").finetune_after is True
    assert options(after_round="rewind", finetune_after=False).finetune_after is False


def test_the_penalty_is_used_only_before_prunings():
    context = prune(
        tiny_model("llama"),
        sparsity=0.5,
        rounds=2,
        after_round="finetune",
        penalty="l1",
        strength=1e-3,
        **TRAINING,
    )
    assert [penalty and penalty.kind for _, penalty in context.seen] == ["l1", "l1", None]
    first, _ = context.seen[0]
    assert not any(bool(mask.any()) for mask in first.values())


def test_a_min_density_that_keeps_too_much_is_an_error():
    with pytest.raises(
        PrunebenchError, match=r"weights cannot be removed while every matrix keeps 0\.2"
    ) as caught:
        prune(
            tiny_model("llama"),
            sparsity=0.9,
            rounds=1,
            scope="global",
            min_density=0.2,
            after_round="none",
        )
    assert "min_density" in caught.value.hint


def test_shares_are_those_of_all_weights_together():
    model = tiny_model("llama")
    context = prune(model, quality=0.8, rounds=1, after_round="none")
    gone = torch.cat([mask.flatten() for mask in zeros(model).values()])
    assert context.notes["shares"] == [pytest.approx(float(gone.float().mean()))]


def imp(**options):
    kind = load_plugins()["method"]["imp"].value
    return kind(kind.Options.model_validate(options))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_removed_weights_go_again_before_survivors_that_are_zero(scope):
    weight = torch.tensor([[3.0, 0, 0, 2, 0, 0, 1, 4]])
    gone = torch.tensor([[False, False, True, False, False, True, False, False]])
    method = imp(scope=scope, min_density=0.0) if scope == "global" else imp()
    assert torch.equal(method._masks({"w": weight}, {"w": gone}, 0.25)["w"], gone)
    more = method._masks({"w": weight}, {"w": gone}, 0.375)["w"]
    assert torch.equal(more, gone | (torch.arange(8) == 1))


def test_removed_weights_stay_removed_if_survivors_do_not_deviate():
    weight = torch.tensor([[2.0, 0, 2, 0]])
    gone = weight == 0
    found = imp(quality=1.0)._masks({"w": weight}, {"w": gone}, 0.5)["w"]
    assert torch.equal(found, gone)
