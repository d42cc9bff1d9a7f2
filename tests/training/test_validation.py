"""Validation: what is held out is not trained on, and the best weights are the ones that stay."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from prunebench import PrunebenchError
from prunebench.training.log import CURVE_POINTS, TrainingLog
from prunebench.training.loop import train
from prunebench.training.loss import mean_loss
from prunebench.training.objective import NextToken
from prunebench.training.optimiser import Trainable
from prunebench.training.settings import TrainingSettings
from prunebench.training.validation import BestWeights
from prunebench.training.watch import Watch
from prunebench.training.windows import TrainingWindows
from tiny import VOCABULARY, tiny_model


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (count, 12), generator=torch.Generator().manual_seed(seed))


def fit(model, tokens: torch.Tensor, spy=None, **options) -> TrainingLog:
    given = {"learning_rate": 2e-2, "batch_size": 4, "schedule": "constant", **options}
    parameters = {
        name: each for name, each in model.named_parameters() if ".mlp." in name or ".fc" in name
    }
    return train(
        NextToken(model),
        Trainable(parameters),
        TrainingWindows(tokens),
        TrainingSettings.model_validate(given),
        generator=torch.Generator().manual_seed(0),
        watch=Watch() if spy is None else Watch(spy),
    )


def test_the_best_weights_are_kept_and_not_the_last_ones():
    """Random windows can only be learnt by heart, so the held-out loss soon rises."""
    tokens, held = drawn(8), drawn(4, seed=1)
    model = tiny_model("llama")
    snapshots: dict[int, torch.Tensor] = {}

    def look(done: int, _total: int) -> None:
        snapshots[done] = model.model.layers[0].mlp.up_proj.weight.detach().clone()

    log = fit(model, torch.cat([tokens, held]), look, epochs=10, val_windows=4, eval_steps=3)
    assert [step for step, _ in log.validation] == [3, 6, 9, 12, 15, 18, 20]
    losses = dict(log.validation)
    assert log.best_step == min(losses, key=losses.__getitem__) < 20
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, snapshots[log.best_step])
    with torch.no_grad():
        assert mean_loss(model, TrainingWindows(held), 4) == pytest.approx(losses[log.best_step])
        logits = model(held).logits[:, :-1].flatten(0, 1)
        plain = torch.nn.functional.cross_entropy(logits, held[:, 1:].flatten())
    assert losses[log.best_step] == pytest.approx(float(plain), rel=1e-5)
    assert not model.training
    assert log.notes["best_step"] == log.best_step
    assert log.notes["best_validation_loss"] == losses[log.best_step]


def test_held_out_windows_are_not_trained_on():
    tokens = drawn(8)
    alone, beside = tiny_model("llama"), tiny_model("llama")
    first = fit(alone, tokens, epochs=2)
    second = fit(
        beside, torch.cat([tokens, drawn(3, seed=1)]), epochs=2, val_windows=3, eval_steps=99
    )
    assert first.losses == second.losses
    assert first.tokens == second.tokens == 2 * 8 * 12


def test_validation_switches_dropout_off_and_does_not_change_the_training():
    tokens = drawn(8)
    often, once = tiny_model("opt", dropout=0.3), tiny_model("opt", dropout=0.3)
    options = {"epochs": 2, "val_share": 0.25, "learning_rate": 1e-3}
    logs = [fit(often, tokens, eval_steps=1, **options), fit(once, tokens, **options)]
    assert logs[0].losses == logs[1].losses
    assert logs[0].validation[-1] == logs[1].validation[-1]


def test_a_share_is_at_least_one_window():
    settings = TrainingSettings(val_share=0.1)
    assert [settings.held_out(windows) for windows in (3, 20, 29, 30)] == [1, 2, 2, 3]
    assert TrainingSettings(val_windows=5).held_out(20) == 5
    assert TrainingSettings().held_out(20) == 0


def test_nothing_left_to_train_on_is_an_error():
    with pytest.raises(PrunebenchError, match="4 of 4 windows are held out") as caught:
        fit(tiny_model("llama"), drawn(4), val_windows=4)
    assert "val_windows" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_windows": 2, "val_share": 0.1}, "not both"),
        ({"eval_steps": 5}, "`eval_steps` needs"),
        ({"val_share": 1.0}, "less than 1"),
        ({"val_windows": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_say_nothing_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        TrainingSettings.model_validate(given)


def test_curves_on_the_record_are_bounded():
    losses = [float(step) for step in range(1, 1235)]
    validation = [(step, step / 7) for step in range(1, 1235)]
    notes = TrainingLog(losses, 1, 1, 1.0, validation=validation, best_step=1).notes
    for curve in (notes["loss_curve"], notes["validation_curve"]):
        assert len(curve) <= CURVE_POINTS
        assert curve[-1][0] == 1234
        gaps = {later[0] - earlier[0] for earlier, later in itertools.pairwise(curve)}
        assert len(gaps) == 1
    short = TrainingLog([3.0, 2.0], 1, 1, 1.0).notes
    assert short["loss_curve"] == [[1, 3.0], [2, 2.0]]
    assert not {"validation_curve", "best_step", "skipped_updates"} & short.keys()


def test_of_equal_losses_the_first_weights_are_kept():
    model = tiny_model("llama")
    weight = model.lm_head.weight
    best = BestWeights(NextToken(model), {"w": weight}, TrainingWindows(drawn(2)), 2)
    kept = weight.detach().clone()
    best.validate(3)
    best.validate(5)
    assert best.step == 3
    assert best.losses[0] == (3, best.losses[1][1])
    with torch.no_grad():
        weight.mul_(50)
    best.validate(7)
    assert best.losses[2][1] > best.losses[0][1]
    best.restore()
    assert torch.equal(weight, kept)
