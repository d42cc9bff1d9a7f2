"""Steps of two models, timed side by side on an undisturbed machine, or not at all."""

from __future__ import annotations

from itertools import count

import pytest

from prunebench import PrunebenchError
from prunebench.measure.devices.disturbance import DisturbedError
from prunebench.measure.speed import step_seconds as module
from prunebench.measure.speed.step_seconds import CLEAN_ROUNDS, MOST_ROUNDS, step_seconds
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.testing import tiny_context
from tiny import tiny_model

SHAPE = {"batch_size": 2, "prompt": 6, "new_tokens": 2}


class Watch:
    """Says what disturbed each round."""

    blind = None

    def __init__(self, disturbed) -> None:
        self._reasons = iter(disturbed)

    def read(self) -> None:
        return None

    def disturbed(self, before, after) -> str | None:
        del before, after
        return next(self._reasons)


class Clock:
    """A decoder whose steps take a given number of seconds each."""

    now = 0.0

    def __init__(self, steps) -> None:
        self._steps = iter(steps)
        self.prompts = 0

    def prompt(self, tokens):
        self.prompts += 1
        return tokens[:, :1]

    def step(self, tokens):
        Clock.now += next(self._steps)
        return tokens


def test_each_model_has_the_median_of_its_clean_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step warms up, and the second round is disturbed."""
    mine = Clock([9, 1, 2, 50, 60, 3, 4, 5, 6])
    theirs = Clock([9, 11, 12, 50, 60, 13, 14, 15, 16])
    clocks = iter([mine, theirs])
    monkeypatch.setattr(module, "decoder", lambda *_: next(clocks))
    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    watch = Watch([None, "busy", None, None])
    found = step_seconds(tiny_model("llama"), ["other"], **SHAPE, watch=watch)
    assert found == [(3.5, 13.5)]
    assert (mine.prompts, theirs.prompts) == (1, 1)


def test_all_models_run_in_the_form_that_the_first_can_run_in(monkeypatch) -> None:
    forms, eager = [], []

    def decoder(model, form, batch, length):
        forms.append((form, batch, length))
        return original(model, form, batch, length)

    class Eager(module.Eager):
        def __init__(self, model) -> None:
            eager.append(model)
            super().__init__(model)

    original = module.decoder
    monkeypatch.setattr(module, "decoder", decoder)
    monkeypatch.setattr(module, "Eager", Eager)
    watch = Watch(None for _ in count())
    hooked = tiny_model("opt")
    hooked.register_forward_hook(lambda *_: None)
    others = iter([tiny_model("llama"), hooked])
    model = tiny_model("llama")
    found = step_seconds(model, others, **SHAPE, watch=watch)
    assert len(found) == 2
    assert all(second > 0 for pair in found for second in pair)
    length = 6 + 2 + MOST_ROUNDS * 2
    # The first model is made once. A hook needs the eager form, so both are timed in it then.
    assert forms == [("lean", 2, length)] * 3
    assert eager == [model, hooked]


def test_the_model_itself_is_made_once_and_each_pair_begins_with_a_prompt(monkeypatch) -> None:
    mine, one, two = Clock([1] * 50), Clock([2] * 50), Clock([3] * 50)
    clocks = iter([mine, one, two])
    monkeypatch.setattr(module, "decoder", lambda *_: next(clocks))
    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    watch = Watch(None for _ in count())
    found = step_seconds(tiny_model("llama"), ["one", "two"], **SHAPE, watch=watch)
    assert found == [(1, 2), (1, 3)]
    assert (mine.prompts, one.prompts, two.prompts) == (2, 1, 1)


def test_a_machine_that_is_never_quiet_gives_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy() -> Watch:
        return Watch([None] * (CLEAN_ROUNDS - 1) + ["others used the cores"] * MOST_ROUNDS)

    model = tiny_model("llama")
    said = rf"{CLEAN_ROUNDS - 1} of {MOST_ROUNDS} rounds were undisturbed and {CLEAN_ROUNDS} are"
    with pytest.raises(DisturbedError, match=f"^{said} needed: others used the cores"):
        step_seconds(model, [model], **SHAPE, watch=busy())
    monkeypatch.setattr(module, "watch_of", lambda _: busy())
    with pytest.raises(PrunebenchError, match=f"a step cannot be timed: {said}") as error:
        tiny_context(model).step_seconds(model, [model], **SHAPE)
    assert "nothing else uses this machine" in str(error.value)


def test_a_shape_beyond_the_model_s_positions_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="the shape to time"):
        step_seconds(tiny_model("opt"), [], batch_size=1, prompt=126, new_tokens=4)


def test_without_the_lean_form_nothing_else_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise UnavailableError("not here")

    monkeypatch.setattr("prunebench.measure.speed.execution.Lean", unavailable)
    watch = Watch(None for _ in count())
    model = tiny_model("llama")
    assert len(step_seconds(model, [model], **SHAPE, watch=watch)) == 1
