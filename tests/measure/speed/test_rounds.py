"""Disturbed rounds are kept, marked, and in no figure; what disturbs is scripted."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed import rounds as module
from prunebench.measure.speed.latency import measure_latency
from prunebench.measure.speed.rounds import Round, Rounds
from tiny import tiny_model

SPEC = {"prompt": 6, "new_tokens": 3, "batch_size": 1, "execution": "eager"}
NOISE = "its threads waited for a core (40 % of the time)"


class Script:
    """A watch and a clock: round k is disturbed, and three times as slow, if ``noisy(k)``."""

    def __init__(self, monkeypatch, noisy) -> None:
        self.blind = None
        self.noisy = noisy
        self.round = 0
        self.now = 0.0
        self.count = itertools.count()
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def model(self, seconds: float):
        model = tiny_model("llama")

        def pass_time(_module, _given, _keywords):
            self.now += seconds * (3 if self.watched and self.noisy(self.round) else 1)

        model.register_forward_pre_hook(pass_time, with_kwargs=True)
        return model

    watched = False

    def read(self) -> int:
        self.watched = not self.watched  # a reading before the round, and one after it
        return self.round

    def disturbed(self, before, after) -> str | None:
        self.round += 1
        return NOISE if self.noisy(before) else None


def prompt():
    return torch.randint(0, 320, (1, 6), generator=torch.Generator().manual_seed(5))


def measured(monkeypatch, noisy, *, pruned=1.0, dense=None, **spec):
    script = Script(monkeypatch, noisy)
    model = script.model(pruned)
    other = None if dense is None else script.model(dense)
    shape = LatencySpec(**{**SPEC, "min_rounds": 3, "min_time_s": 0, **spec})
    return measure_latency(model, prompt(), shape, dense=other, watch=script)


def test_a_disturbed_round_is_repeated_and_in_no_figure(monkeypatch):
    found, samples = measured(monkeypatch, lambda number: number == 1)
    assert (found.rounds, found.disturbed_rounds) == (3, 1)
    assert found.ttft_s.maximum == 1
    assert found.inter_token_s.maximum == 1
    assert samples.ttft_s == [1, 3, 1, 1]
    assert samples.disturbed == [None, NOISE, None, None]


def test_a_pair_counts_only_if_both_of_its_rounds_are_undisturbed(monkeypatch):
    found, samples = measured(monkeypatch, lambda number: number in {0, 5}, pruned=1, dense=2)
    assert (found.rounds, found.disturbed_rounds) == (8, 2)
    speedup = found.inter_token_speedup
    assert (speedup.estimate, speedup.low, speedup.high, speedup.rounds) == (2, 2, 2, 8)
    assert len(samples.dense_ttft_s) == len(samples.ttft_s) == len(samples.disturbed) == 10


def test_a_machine_that_is_never_quiet_gives_a_reason_and_no_number(monkeypatch):
    found, samples = measured(monkeypatch, lambda _: True, dense=2)
    assert found.not_measurable == (
        f"0 of {len(samples.ttft_s)} rounds were undisturbed and 6 are needed: "
        "its threads waited for a core"
    )
    given = found.model_dump()
    for key in ("ttft_s", "inter_token_s", "tokens_per_s", "ttft_speedup", "inter_token_speedup"):
        assert given[key] is None
    assert given["dense_ttft_s"] is given["dense_inter_token_s"] is None
    assert all(samples.disturbed)


@pytest.mark.parametrize(("patience", "rounds"), [(1, 8), (3, 24), (5, 40)])
def test_repeating_is_bounded_by_the_planned_time(monkeypatch, patience, rounds):
    """Planned are 8 pairs; every disturbed pair takes as long as a clean one would."""
    _, samples = measured(monkeypatch, lambda _: True, dense=1, patience=patience)
    assert len(samples.ttft_s) == rounds


def test_the_minimum_time_counts_undisturbed_rounds_only(monkeypatch):
    found, samples = measured(
        monkeypatch, lambda number: number % 2 == 1, min_time_s=15, patience=5
    )
    assert found.rounds == 5  # of 3 seconds each
    assert len(samples.ttft_s) == 9


@pytest.mark.parametrize("pairs", [6, 7])
def test_fewer_clean_pairs_than_planned_are_enough_from_six_on(monkeypatch, pairs):
    found, _ = measured(monkeypatch, lambda number: number >= 2 * pairs, dense=1, min_rounds=20)
    assert found.not_measurable is None
    assert found.inter_token_speedup.rounds == pairs


def test_five_clean_pairs_are_too_few(monkeypatch):
    found, _ = measured(monkeypatch, lambda number: number > 9, dense=1, min_rounds=20)
    assert "5 of " in found.not_measurable
    assert found.inter_token_speedup is None


@pytest.mark.parametrize(
    ("wanted", "quiet", "enough"), [(3, 3, True), (3, 2, False), (20, 6, True), (20, 5, False)]
)
def test_a_model_alone_needs_the_rounds_that_are_asked_for_but_no_more_than_six(
    monkeypatch, wanted, quiet, enough
):
    found, _ = measured(monkeypatch, lambda number: number >= quiet, min_rounds=wanted)
    assert (found.not_measurable is None) == enough
    assert found.rounds == quiet


def test_a_system_that_cannot_tell_says_so_and_gives_figures(monkeypatch):
    script = Script(monkeypatch, lambda _: False)
    script.blind = "no schedstat"
    shape = LatencySpec(**{**SPEC, "min_rounds": 3, "min_time_s": 0})
    found, _ = measure_latency(script.model(1), prompt(), shape, watch=script)
    assert found.not_watched == "no schedstat"
    assert found.ttft_s.median == 1


def test_the_planned_time_is_that_of_undisturbed_rounds():
    """The fastest of each model: two seconds and five."""
    found = Rounds([[Round(2, [1, 4]), Round(1, [1, 0])], [Round(3, [2]), Round(4, [9])]])
    shape = LatencySpec(**{**SPEC, "min_rounds": 3, "min_time_s": 30})
    assert module._planned(found, shape, 3) == pytest.approx(15 * 7)
    assert module._planned(found, shape, 20) == pytest.approx(20 * 7)
    assert module._spent(found) == pytest.approx(7 + 2 + 5 + 13)


def test_the_clock_is_read_when_the_device_is_done_before_and_after_each_token(monkeypatch):
    events = []

    class Decoder:
        def prompt(self, tokens):
            events.append("prompt")
            return tokens

        def step(self, tokens):
            events.append("step")
            return tokens

    def clock() -> float:
        events.append("clock")
        return float(2 ** len(events))

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    first, others = module.one_round(Decoder(), prompt(), 3, lambda: events.append("wait"))
    done = ["wait", "clock"]
    assert events == [*done, "prompt", *done, "step", *done, "step", *done]
    assert (first, others) == (2**5 - 2**2, [2**8 - 2**5, 2**11 - 2**8])
