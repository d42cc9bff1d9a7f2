"""A training that was killed goes on from its last state, with the same result to the last bit."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunebench.store.run_folder import RunStore, training_folder
from prunebench.testing.contexts import tiny_context
from prunebench.training import checkpoint
from prunebench.training.checkpoint import TrainingCheckpoint, TrainingCheckpoints
from prunebench.training.log import TrainingLog
from prunebench.training.loop import train
from prunebench.training.objective import NextToken
from prunebench.training.optimiser import Trainable
from prunebench.training.settings import TrainingSettings
from prunebench.training.watch import Watch
from prunebench.training.windows import TrainingWindows
from tiny import VOCABULARY, tiny_model

WINDOWS = torch.randint(2, VOCABULARY, (5, 8), generator=torch.Generator().manual_seed(0))
PLAN = {"learning_rate": 1e-2, "batch_size": 2, "epochs": 2, "schedule": "cosine"}


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after each step, however long saving takes."""
    monkeypatch.setattr(checkpoint, "SHARE", 1e12)


def killer(after: int | None) -> Callable[[int, int], None]:
    def step(done: int, _total: int) -> None:
        if done == after:
            raise Killed

    return step


def run(
    folder: Path | None,
    *,
    kill: int | None = None,
    dtype=torch.float32,
    half_zero=False,
    frozen=0.0,
    **plan,
) -> tuple[dict[str, torch.Tensor], TrainingLog | None]:
    """Train a model that was just made, and kill the process after so many steps."""
    model = tiny_model("opt", dropout=0.1, num_hidden_layers=1).to(
        dtype
    )  # dropout draws random numbers
    if frozen:
        model.model.decoder.embed_positions.weight[0, 0] += frozen
    parameters = {
        n: each for n, each in model.named_parameters() if n.endswith("proj.weight") or "fc" in n
    }
    masks = {}
    if half_zero:
        masks = {n: each.abs() < 0.05 for n, each in parameters.items() if "fc1" in n}
    log = None
    saved = None if folder is None else TrainingCheckpoint(folder / "1.pt", every_s=0)
    with contextlib.suppress(Killed):
        log = train(
            NextToken(model),
            Trainable(parameters, masks),
            TrainingWindows(WINDOWS),
            TrainingSettings.model_validate({**PLAN, **plan}),
            generator=torch.Generator().manual_seed(3),
            watch=Watch(killer(kill)),
            checkpoint=saved,
        )
    return {name: each.detach().clone() for name, each in model.named_parameters()}, log


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dtype": torch.bfloat16, "half_zero": True},
        {"val_windows": 2, "eval_steps": 2, "weight_decay": 0.1},
    ],
)
@pytest.mark.usefixtures("every_step")
def test_a_killed_training_ends_like_one_that_was_not(given, tmp_path: Path) -> None:
    expected, whole = run(None, **given)
    assert whole is not None
    for kill in (2, 4):  # the second goes on from the first, into another epoch
        _, log = run(tmp_path, kill=kill, **given)
        assert log is None
    found, log = run(tmp_path, **given)
    assert log is not None
    # The state of the step that was killed was never written: it is taken again.
    assert log.resumed_after == 3
    assert all(torch.equal(each, expected[name]) for name, each in found.items())
    assert (log.losses, log.validation) == (whole.losses, whole.validation)
    assert (log.tokens, log.best_step) == (whole.tokens, whole.best_step)
    assert log.seconds > 0
    assert log.notes["resumed_after_step"] == 3
    assert "resumed_after_step" not in whole.notes
    # What follows the training may be killed, too: then nothing is trained again.
    again, log = run(tmp_path, kill=1, **given)
    assert log is not None and log.resumed_after == len(whole.losses)
    assert all(torch.equal(each, expected[name]) for name, each in again.items())


@pytest.mark.parametrize(
    "other",
    [{"learning_rate": 2e-2}, {"half_zero": True}, {"dtype": torch.float64}, {"frozen": 0.1}],
)
@pytest.mark.usefixtures("every_step")
def test_another_training_begins_at_the_beginning(other, tmp_path: Path) -> None:
    run(tmp_path, kill=2)
    _, log = run(tmp_path, **other)
    assert log is not None and log.resumed_after is None


@pytest.mark.usefixtures("every_step")
def test_a_torn_file_is_no_state_and_a_full_disk_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = run(None)
    run(tmp_path, kill=4)
    path = tmp_path / "1.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with caplog.at_level(logging.WARNING):
        found, log = run(tmp_path)
    assert log is not None and log.resumed_after is None
    assert all(torch.equal(each, expected[name]) for name, each in found.items())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "cannot be read, so the training begins again" in said[0]
    assert "cannot be resumed if it is killed" in said[1] and "0.00105 GB are free" in said[1]


def test_states_are_written_from_time_to_time(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    saved = TrainingCheckpoint(tmp_path / "1.pt", every_s=60)
    assert saved.load("this") is None
    assert not saved.due(last=False) and not saved.due(last=True)
    now[0] = 60.0
    assert saved.due(last=False) and saved.due(last=True)
    saved.save({"losses": []})
    assert not saved.due(last=False) and saved.due(last=True)
    now[0] = 120.0
    assert saved.due(last=False)
    # Saving that takes long is done more rarely: 10 s are 5 % of 200 s.
    real = checkpoint.os.fsync
    monkeypatch.setattr(
        checkpoint.os, "fsync", lambda file: (real(file), now.__setitem__(0, 130.0))
    )
    saved.save({"losses": []})
    now[0] = 329.0
    assert not saved.due(last=False)
    now[0] = 330.0
    assert saved.due(last=False)
    assert [path.name for path in tmp_path.iterdir()] == ["1.pt"]


@pytest.mark.usefixtures("every_step")
def test_every_training_of_a_context_has_its_own_file(tmp_path: Path) -> None:
    def trained(kill: int | None) -> list[TrainingLog]:
        model = tiny_model("llama")
        context = tiny_context(model)
        context.checkpoints = TrainingCheckpoints(tmp_path / "recover", every_s=0)
        plan = TrainingSettings(learning_rate=1e-2, batch_size=2)
        weights = {"lm_head.weight": model.lm_head.weight}
        logs = [context.train(model, weights, plan)]
        context.progress = killer(kill)
        return [*logs, context.train(model, weights, plan)]

    with pytest.raises(Killed):
        trained(2)
    first, second = trained(None)
    assert (first.resumed_after, second.resumed_after) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "recover").iterdir()) == ["1.pt", "2.pt"]


def test_a_cell_with_a_record_keeps_no_states(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    path = store.partial_results_path("abc")
    folder = training_folder(path)
    assert folder == tmp_path / "cells" / "abc.partial.training"
    (folder / "recover").mkdir(parents=True)
    path.write_text("{}")
    (folder / "recover" / "1.pt").write_bytes(b"")
    store.drop_partial_results("abc")
    assert list((tmp_path / "cells").iterdir()) == []
