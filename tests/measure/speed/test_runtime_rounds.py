"""Sessions of a runtime, timed in turn; what is said of tokens that come in bursts."""

from __future__ import annotations

import pytest
import torch

from prunebench import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed import rounds
from prunebench.measure.speed.rounds import Round
from prunebench.measure.speed.runtime_rounds import (
    SessionDecoder,
    come_in_bursts,
    measure_sessions,
)
from prunebench.measure.speed.runtime_tokens import ROUNDING, agreement

SPEC = LatencySpec(prompt=3, new_tokens=4, batch_size=1, min_rounds=2, min_time_s=0.0)
PROMPT = torch.tensor([[7, 8, 9]])


class Watch:
    blind = None

    def __init__(self, disturbed=False):
        self._disturbed = disturbed

    def read(self):
        return None

    def disturbed(self, before, after):
        return "another process (90 %)" if self._disturbed else None


class Counting:
    """Gives the numbers after the last of the prompt, and writes down when a prompt begins."""

    def __init__(self, log, name, count=4):
        self._log, self._name, self._count = log, name, count

    def tokens(self, prompt):
        self._log.append(self._name)
        try:
            yield from range(prompt[-1] + 1, prompt[-1] + 1 + self._count)
        finally:
            self._log.append(f"{self._name} ended")


def test_both_sessions_take_turns_and_the_tokens_are_those_of_the_first():
    log = []
    found, tokens = measure_sessions(
        [Counting(log, "pruned"), Counting(log, "dense")], PROMPT, SPEC, 1, Watch()
    )
    assert tokens == [10, 11, 12, 13]
    begun = [name for name in log if not name.endswith("ended")]
    assert len(begun) == 18  # one round of each to warm up, then eight pairs
    # Which one goes first alternates too.
    assert begun[2:6] in (["pruned", "dense", "dense", "pruned"], ["dense", "pruned"] * 2) or (
        begun[2:6] == ["dense", "pruned", "pruned", "dense"]
    )
    assert len(log) == 36  # every iterator was closed
    assert found.rounds == 8
    assert found.token_speedup is not None
    assert found.token_speedup.low is not None
    assert found.ttft_speedup is not None


class Slow(Counting):
    """Every token takes ``seconds`` on the clock that `measure_sessions` reads."""

    def __init__(self, clock, seconds):
        super().__init__([], "")
        self._clock, self._seconds = clock, seconds

    def tokens(self, prompt):
        for token in super().tokens(prompt):
            self._clock[0] += self._seconds
            yield token


def test_the_speed_up_is_dense_over_pruned(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])
    found, _ = measure_sessions([Slow(clock, 1.0), Slow(clock, 3.0)], PROMPT, SPEC, 1, Watch())
    assert found.token_speedup is not None
    assert found.ttft_speedup is not None
    assert (found.token_speedup.estimate, found.ttft_speedup.estimate) == (3.0, 3.0)
    assert found.token_s is not None
    assert found.dense_token_s is not None
    assert (found.token_s.median, found.dense_token_s.median) == (1.0, 3.0)
    assert not found.bursts


def test_without_dense_there_are_times_and_no_ratio():
    found, _ = measure_sessions([Counting([], "dense")], PROMPT, SPEC, 2, Watch())
    assert found.token_s is not None
    assert found.token_speedup is None
    assert found.threads == 2


def test_disturbed_rounds_give_no_figure():
    found, tokens = measure_sessions(
        [Counting([], "a"), Counting([], "b")], PROMPT, SPEC, 1, Watch(disturbed=True)
    )
    assert tokens
    assert (found.rounds, found.token_s, found.token_speedup) == (0, None, None)
    assert "another process" in (found.not_measurable or "")


def test_a_session_that_ends_early_is_an_error():
    with pytest.raises(PrunebenchError, match="ended after 2 tokens"):
        measure_sessions([Counting([], "short", 2)], PROMPT, SPEC, 1, Watch())


def test_a_new_prompt_ends_the_one_before():
    log = []
    decoder = SessionDecoder(Counting(log, "one"))
    decoder.prompt(PROMPT)
    assert decoder.step(PROMPT).tolist() == [[11]]
    decoder.prompt(PROMPT)
    assert log == ["one", "one ended", "one"]
    assert decoder.given == [10]


@pytest.mark.parametrize(
    ("steps", "bursts"),
    [
        ([1.0] * 8, False),
        ([2.0, 0.01] * 4, True),  # two tokens at a time
        ([4.0, 0.0, 0.0, 0.0] * 2, True),
        ([1.0, 1.3, 0.7, 1.1] * 2, False),
        ([1.0] * 30 + [0.01], False),  # one token that waited in a buffer
    ],
)
def test_bursts_are_seen_by_steps_of_no_time(steps, bursts):
    assert come_in_bursts(Round(1.0, steps)) is bursts


def test_in_bursts_the_steps_are_means_of_rounds(monkeypatch):
    times = iter(range(1000))
    now = 0.0

    def clock():
        nonlocal now
        # Every other token comes at once.
        now += 0.0 if next(times) % 2 else 2.0
        return now

    monkeypatch.setattr(rounds.time, "perf_counter", clock)
    found, _ = measure_sessions([Counting([], "a")], PROMPT, SPEC, 1, Watch())
    assert found.bursts
    assert found.token_s is not None
    assert found.token_s.count == found.rounds


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_the_same_tokens_agree():
    found = agreement(logits([1, 2, 0], [5, 1, 0]), [1, 0])
    assert (found.compared, found.first_difference, found.same) == (2, None, True)


def test_a_tie_agrees_and_what_follows_is_not_compared():
    unit = 2.0**-23 * 4
    found = agreement(logits([4, 4 - ROUNDING * unit / 2, 0], [5, 1, 0]), [1, 2])
    assert found.first_difference == 0
    assert found.same


def test_a_margin_above_rounding_is_another_model():
    found = agreement(logits([1, 2, 0], [5, 4.99, 0]), [1, 1])
    assert found.first_difference == 1
    assert found.margin == pytest.approx(0.01, rel=1e-3)
    assert not found.same


def test_in_bfloat16_a_margin_of_its_own_rounding_agrees():
    rows = logits([4, 3.95, 0]).bfloat16()
    assert agreement(rows, [1]).same
    assert not agreement(rows.float(), [1]).same
