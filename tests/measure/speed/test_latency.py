from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from decoding import generated
from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed import latency
from prunebench.measure.speed import rounds as module
from prunebench.measure.speed.execution import ExecutionChoice
from prunebench.measure.speed.latency import measure_latency
from tiny import FAMILIES, tiny_model


class Clock:
    """A clock that only models move: by seconds for a prompt and for a step, times ``slower``."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def model(self, name, prompt_s, step_s, slower=lambda _call: 1.0, family="llama"):
        model = tiny_model(family)

        def pass_time(_module, given, keywords):
            tokens = given[0]
            self.calls.append((name, *tokens.shape))
            self.now += (prompt_s if tokens.shape[1] > 1 else step_s) * slower(len(self.calls))

        model.register_forward_pre_hook(pass_time, with_kwargs=True)
        return model

    def prompts(self):
        return [name for name, _, length in self.calls if length > 1]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def prompt(batch=2, length=6):
    return torch.randint(0, 320, (batch, length), generator=torch.Generator().manual_seed(5))


def spec(**changes):
    return LatencySpec(
        **(
            {
                "prompt": 6,
                "new_tokens": 5,
                "batch_size": 2,
                "min_rounds": 3,
                "min_time_s": 0,
                "execution": "eager",
            }
            | changes
        )
    )


def test_prompt_and_generation_are_timed_apart(clock):
    found, samples = measure_latency(clock.model("m", 0.5, 0.25), prompt(), spec())
    assert samples.ttft_s == [0.5] * 3
    assert samples.inter_token_s == [[0.25] * 4] * 3
    assert (found.ttft_s.median, found.inter_token_s.p99, found.inter_token_s.count) == (
        0.5,
        0.25,
        12,
    )
    assert found.tokens_per_s == 2 / 0.25
    assert (found.rounds, found.device, found.warmup_rounds) == (3, "cpu", 1)
    assert found.ttft_speedup is None
    assert samples.dense_ttft_s is None


def test_every_round_and_the_warm_up_have_the_measured_shape(clock):
    measure_latency(clock.model("m", 1, 1), prompt(), spec())
    assert clock.calls == [("m", 2, 6), *[("m", 2, 1)] * 4] * 4


@pytest.mark.parametrize(
    ("min_rounds", "min_time_s", "rounds"), [(7, 0, 7), (1, 10, 7), (8, 10, 8), (1, 0, 1)]
)
def test_it_stops_when_both_minima_are_met(clock, min_rounds, min_time_s, rounds):
    model = clock.model("m", 0.5, 0.25)  # 1.5 s a round
    assert (
        measure_latency(model, prompt(), spec(min_rounds=min_rounds, min_time_s=min_time_s))[
            0
        ].rounds
        == rounds
    )


def test_dense_rounds_alternate_with_the_models_and_each_goes_first_equally_often(clock):
    pruned, dense = clock.model("pruned", 0.5, 0.125), clock.model("dense", 1, 0.5)
    found, samples = measure_latency(pruned, prompt(), spec(min_rounds=8), dense=dense)
    first = ["dense", "pruned"]
    assert clock.prompts()[2:] == (first + first[::-1]) * 4  # behind one warm-up each
    assert (found.ttft_speedup.estimate, found.ttft_speedup.rounds) == (2, 8)
    assert (found.inter_token_speedup.low, found.inter_token_speedup.high) == (4, 4)
    assert samples.dense_inter_token_s == [[0.5] * 4] * 8
    assert found.dense_ttft_s.median == 1
    assert found.ttft_s.median == 0.5


def test_a_machine_that_slows_down_does_not_move_the_paired_ratio(clock):
    pruned = clock.model("pruned", 1, 1, slower=lambda call: 1 + call / 100)
    dense = clock.model("dense", 1.5, 1.5, slower=lambda call: 1 + call / 100)
    found, _ = measure_latency(pruned, prompt(), spec(min_rounds=10), dense=dense)
    assert found.ttft_s.maximum > 1.5 * found.ttft_s.minimum
    assert found.ttft_speedup.estimate == pytest.approx(1.5, rel=0.02)
    assert found.ttft_speedup.low <= 1.5 <= found.ttft_speedup.high


def test_pairs_are_enough_for_an_interval(clock):
    found, _ = measure_latency(
        clock.model("p", 1, 1), prompt(), spec(min_rounds=1), dense=clock.model("d", 1, 1)
    )
    assert found.rounds == found.ttft_speedup.rounds == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_that_generate_gives(family):
    model = tiny_model(family)
    ids = prompt(2, 20)
    expected = generated(model, ids, 8)[:, 20:]
    fed = []
    model.register_forward_pre_hook(lambda _, given, __: fed.append(given[0]), with_kwargs=True)
    measure_latency(model, ids, spec(prompt=20, new_tokens=9, min_rounds=1))
    once = fed[9:]  # behind the warm-up
    assert torch.equal(once[0], ids)
    assert torch.equal(torch.cat(once[1:], dim=1), expected)


def test_the_garbage_collector_rests_and_comes_back(clock):
    states = []
    model = clock.model("m", 1, 1, slower=lambda _: states.append(gc.isenabled()) or 1.0)
    measure_latency(model, prompt(), spec(min_rounds=1))
    assert states == [True] * 5 + [False] * 5
    assert gc.isenabled()


def test_a_prompt_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 7\], not \[2, 6\]"):
        measure_latency(tiny_model("llama"), prompt(2, 7), spec())


def test_a_shape_beyond_learned_positions_is_refused():
    with pytest.raises(PrunebenchError, match="130 tokens"):
        measure_latency(
            tiny_model("opt"), prompt(1, 120), spec(prompt=120, new_tokens=10, batch_size=1)
        )


@pytest.mark.parametrize(("same_tokens", "rounds"), [(None, 1 + 3), (True, 3), (False, 3)])
def test_a_comparison_of_forms_was_the_warm_up(same_tokens, rounds, monkeypatch):
    class Decoder:
        prompts = 0

        def prompt(self, tokens):
            self.prompts += 1
            return tokens[:, :1]

        def step(self, tokens):
            return tokens

    decoder = Decoder()
    monkeypatch.setattr(
        latency, "choose", lambda *_: ExecutionChoice("eager", [decoder], same_tokens)
    )
    measure_latency(tiny_model("llama"), prompt(), spec())
    assert decoder.prompts == rounds
