"""The training loop: it minimises its loss, keeps masked weights at zero, and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from prunebench import Penalty, PrunebenchError, anatomy
from prunebench.training.log import TrainingLog
from prunebench.training.loop import _batches, _seeded, train
from prunebench.training.objective import NextToken
from prunebench.training.optimiser import Trainable
from prunebench.training.settings import TrainingSettings
from prunebench.training.watch import Watch
from prunebench.training.windows import TrainingWindows
from tiny import FAMILIES, VOCABULARY, tiny_model


def windows(count: int = 6, length: int = 12) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def weights(model) -> dict[str, torch.nn.Parameter]:
    parts = anatomy(model)
    linears = {id(each.weight) for layer in parts.layers for each in parts.linears(layer).values()}
    return {name: each for name, each in model.named_parameters() if id(each) in linears}


def run(
    model, parameters=None, tokens=None, seed: int = 0, counted=None, part=None, **kwargs
) -> TrainingLog:
    masks, penalty = kwargs.pop("masks", {}), kwargs.pop("penalty", None)
    plan = TrainingSettings.model_validate(
        {"learning_rate": 1e-3, "batch_size": 4, "schedule": "constant", **kwargs}
    )
    return train(
        NextToken(model),
        Trainable(weights(model) if parameters is None else parameters, masks, penalty),
        TrainingWindows(windows() if tokens is None else tokens, counted),
        plan,
        generator=torch.Generator().manual_seed(seed),
        watch=Watch(),
        part=part,
    )


def half_masks(parameters) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(each.shape, generator=generator) < 0.5 for name, each in parameters.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_on_a_repeated_batch(family):
    log = run(tiny_model(family), tokens=windows(4), epochs=8, learning_rate=3e-3)
    assert len(log.losses) == 8
    assert log.losses[-1] < log.losses[0] - 0.2
    assert log.tokens == 8 * 4 * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_weights_stay_exactly_zero_and_the_others_move(dtype):
    model = tiny_model("llama").to(dtype)
    parameters = weights(model)
    masks = half_masks(parameters)
    before = {name: each.detach().clone() for name, each in parameters.items()}
    run(
        model,
        masks=masks,
        epochs=3,
        weight_decay=0.1,
        penalty=Penalty("l1", 1e-3),
        learning_rate=1e-2,
    )
    for name, each in parameters.items():
        assert bool((each[masks[name]] == 0).all()), name
        assert not torch.equal(each[~masks[name]], before[name][~masks[name]]), name


def test_steps_are_those_of_a_plain_loop():
    ours, plain = tiny_model("qwen2"), tiny_model("qwen2")
    tokens = windows(4)
    log = run(
        ours, tokens=tokens, epochs=3, weight_decay=0.01, max_grad_norm=0.5, micro_batch_size=3
    )
    parameters = [each.requires_grad_(requires_grad=True) for each in weights(plain).values()]
    adam = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    losses = []
    for _ in range(3):
        logits = plain(tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert log.losses == pytest.approx(losses, rel=1e-5)
    for name, each in weights(ours).items():
        torch.testing.assert_close(each, weights(plain)[name].detach(), rtol=1e-4, atol=2e-6)


def test_the_size_of_micro_batches_changes_nothing():
    one, four = tiny_model("opt"), tiny_model("opt")
    first = run(one, micro_batch_size=1, epochs=2)
    second = run(four, micro_batch_size=4, epochs=2)
    assert first.losses == pytest.approx(second.losses, rel=1e-5)


def test_only_the_trained_weights_of_the_model_change():
    model, before = tiny_model("llama"), tiny_model("llama")
    model.lm_head.weight.requires_grad = True
    parameters = dict(list(weights(model).items())[:2])
    state = torch.get_rng_state()
    with torch.no_grad():  # plugins are called so
        run(model, parameters)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        "model.embed_tokens.weight"
    ]
    assert all(each.grad is None for each in model.parameters())
    for (name, each), other in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(each, other) == (name not in parameters), name


def test_the_generator_decides_order_and_dropout():
    def last(seed: int) -> torch.Tensor:
        model = tiny_model("opt", dropout=0.3)
        run(model, seed=seed, epochs=2)
        return model.model.decoder.layers[0].fc1.weight.detach()

    assert torch.equal(last(0), last(0))
    assert not torch.equal(last(0), last(1))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_penalty_makes_weights_smaller_and_spares_biases(kind):
    def norms(penalty: Penalty | None) -> tuple[float, float]:
        model = tiny_model("opt")
        parameters = {name: each for name, each in model.named_parameters() if "fc1" in name}
        run(model, parameters, epochs=4, penalty=penalty, max_grad_norm=None)
        sums = [
            sum(each.abs().sum().item() for each in parameters.values() if each.dim() == dim)
            for dim in (2, 1)
        ]
        return sums[0], sums[1]

    plain, penalised = norms(None), norms(Penalty(kind, 1.0))
    assert penalised[0] < plain[0]
    assert penalised[1] == pytest.approx(plain[1], rel=1e-2)


def test_small_steps_are_not_lost_in_half_precision():
    """Each step is far below half a unit in the last place of a bfloat16; together they are not."""
    model = tiny_model("llama").to(torch.bfloat16)
    before = {name: each.detach().clone() for name, each in weights(model).items()}
    run(model, epochs=20, learning_rate=2e-5, batch_size=6)
    moved = [float((each != before[name]).float().mean()) for name, each in weights(model).items()]
    assert min(moved) > 0.05


def test_progress_counts_steps():
    seen: list[tuple[int, int]] = []
    model = tiny_model("llama")
    plan = TrainingSettings(batch_size=4, epochs=2, max_steps=3)
    train(
        NextToken(model),
        Trainable(weights(model)),
        TrainingWindows(windows(6)),
        plan,
        generator=torch.Generator(),
        watch=Watch(lambda done, total: seen.append((done, total))),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_loss_that_is_not_finite_names_the_step_and_the_weight():
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        PrunebenchError,
        match=r"step 1 of 2: the loss is not finite.*layers\.2\.mlp\.up_proj\.weight",
    ):
        run(model)
    assert not model.training
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())


def test_a_gradient_that_is_not_finite_names_its_weight_and_changes_nothing():
    model, before = tiny_model("llama"), tiny_model("llama")
    target = weights(model)["model.layers.1.mlp.down_proj.weight"]
    hook = target.requires_grad_().register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        PrunebenchError,
        match=r"step 1 of 2: the gradient of model\.layers\.1\.mlp\.down_proj\.weight",
    ):
        run(model)
    hook.remove()
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_windows_of_one_token_are_refused():
    with pytest.raises(ValueError, match="length >= 2"):
        run(tiny_model("llama"), tokens=windows(2, 1))


def test_a_part_of_the_schedule_has_its_rates_and_its_number_of_steps():
    """The first two steps and then the other four are all six: AdamW begins anew, so use two."""
    whole, parts = tiny_model("llama"), tiny_model("llama")
    options = {"tokens": windows(4), "epochs": 6, "schedule": "linear"}
    first = run(parts, part=range(2), **options)
    log = run(whole, **options)
    assert first.losses == log.losses[:2]
    rest = run(parts, part=range(2, 6), **options)
    assert len(rest.losses) == 4
    assert rest.losses[0] == pytest.approx(log.losses[2], rel=1e-5)
    one, other = tiny_model("llama"), tiny_model("llama")
    run(one, part=range(5, 6), **options)
    # Five of six steps are done: the rate is a sixth of the peak.
    run(other, tokens=windows(4), epochs=1, learning_rate=1e-3 / 6)
    for name, each in weights(one).items():
        torch.testing.assert_close(each, weights(other)[name], rtol=1e-4, atol=1e-7)


def test_every_generator_gives_dropout_another_seed():
    seeds = set()
    for number in range(100):
        state = torch.get_rng_state()
        with _seeded(torch.Generator().manual_seed(number), torch.device("cpu")):
            seeds.add(torch.initial_seed())
        assert torch.equal(torch.get_rng_state(), state)
    assert len(seeds) == 100
    assert 2**30 < max(seeds) < 2**31


def test_every_epoch_has_another_order_that_the_generator_draws():
    tokens = torch.arange(7)[:, None].repeat(1, 3)  # window i holds i
    settings = TrainingSettings(batch_size=3)
    batches = _batches(TrainingWindows(tokens), settings, 8, torch.Generator().manual_seed(5))
    found = [batch.tokens[:, 0].tolist() for batch in batches]
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(7, generator=generator).tolist() for _ in range(3)]
    expected = [order[start : start + 3] for order in orders for start in (0, 3, 6)]
    assert found == expected[:8]
    assert orders[0] != orders[1] != sorted(orders[1])


def test_dropout_is_on_while_training_and_off_before_and_after():
    def losses(dropout: float) -> list[float]:
        model = tiny_model("opt", dropout=dropout)
        assert not model.training
        log = run(model, tokens=windows(4))
        assert not model.training
        return log.losses

    assert losses(0.0) == losses(0.0)
    assert losses(0.0) != losses(0.5)
    model = tiny_model("opt")
    model.train()
    run(model)
    assert model.training


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_a_penalty_has_its_weight_beside_the_mean_loss(kind, power):
    """AdamW hides the size of a gradient, but not that of its parts."""
    ours, plain = tiny_model("llama"), tiny_model("llama")
    tokens = windows(4)
    run(
        ours,
        tokens=tokens,
        epochs=2,
        max_grad_norm=None,
        micro_batch_size=3,
        penalty=Penalty(kind, 0.01),
    )
    parameters = [each.requires_grad_(requires_grad=True) for each in weights(plain).values()]
    adam = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        loss = plain(tokens, labels=tokens).loss
        loss += 0.01 * sum(each.abs().pow(power).sum() for each in parameters)
        loss.backward()
        adam.step()
        adam.zero_grad()
    for name, each in weights(ours).items():
        torch.testing.assert_close(each, weights(plain)[name].detach(), rtol=1e-3, atol=1e-4)


def test_only_trained_parameters_get_gradients():
    model = tiny_model("llama")
    parameters = dict(list(weights(model).items())[:2])
    others = [each for name, each in model.named_parameters() if name not in parameters]
    seen: list[bool] = []

    def look(_done: int, _total: int) -> None:
        seen.append(any(each.requires_grad or each.grad is not None for each in others))

    train(
        NextToken(model),
        Trainable(parameters),
        TrainingWindows(windows(4)),
        TrainingSettings(batch_size=2),
        generator=torch.Generator(),
        watch=Watch(look),
    )
    assert seen == [False, False]
