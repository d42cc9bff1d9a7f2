"""Steps of several models, timed side by side on an undisturbed machine, or not at all."""

from __future__ import annotations

from itertools import count

import pytest

from prunebench import PrunebenchError
from prunebench.measure.devices.disturbance import DisturbedError
from prunebench.measure.speed import step_seconds as module
from prunebench.measure.speed.rounds import Round, Rounds
from prunebench.measure.speed.step_seconds import CLEAN_ROUNDS, step_seconds
from prunebench.testing import tiny_context
from tiny import tiny_model

SHAPE = {"batch_size": 2, "prompt": 6, "new_tokens": 4}


class Watch:
    """Says that some rounds were disturbed."""

    blind = None

    def __init__(self, disturbed) -> None:
        self._reasons = iter(disturbed)

    def read(self) -> None:
        return None

    def disturbed(self, before, after) -> str | None:
        del before, after
        return next(self._reasons)


def test_each_model_has_the_median_of_its_clean_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "time_rounds",
        lambda decoders, *_: Rounds(
            [
                [
                    Round(9.0, [number + 1.0, number + 2.0, number + 3.0], None)
                    if index
                    else Round(9.0, [50.0 if index == 0 else 1.0], "busy")
                    for index in range(CLEAN_ROUNDS + 1)
                ]
                for number in range(len(decoders))
            ]
        ),
    )
    assert step_seconds([tiny_model("llama"), tiny_model("llama")], **SHAPE) == [2.0, 3.0]


def test_models_run_on_the_shape_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def time_rounds(decoders, ids, spec, fewest, watch, wait):
        seen.append((len(decoders), tuple(ids.shape), spec.new_tokens, fewest))
        return original(decoders, ids, spec, fewest, watch, wait)

    original = module.time_rounds
    monkeypatch.setattr(module, "time_rounds", time_rounds)
    watch = Watch(None for _ in count())
    found = step_seconds([tiny_model("llama"), tiny_model("opt")], **SHAPE, watch=watch)
    assert seen == [(2, (2, 6), 4, CLEAN_ROUNDS)]
    assert all(each > 0 for each in found)


def test_a_machine_that_is_never_quiet_gives_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Watch("others used the cores" for _ in count())
    model = tiny_model("llama")
    with pytest.raises(DisturbedError, match=r"^0 of \d+ rounds were undisturbed and 3 are needed"):
        step_seconds([model], **SHAPE, watch=busy)
    monkeypatch.setattr(module, "watch_of", lambda _: busy)
    with pytest.raises(PrunebenchError, match="a step cannot be timed: 0 of") as error:
        tiny_context(model).step_seconds([model], **SHAPE)
    assert "nothing else uses this machine" in str(error.value)


def test_a_shape_beyond_the_model_s_positions_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="the shape to time"):
        step_seconds([tiny_model("opt")], batch_size=1, prompt=126, new_tokens=4)
