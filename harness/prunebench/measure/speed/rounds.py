"""Rounds of one or two models, timed in turn; disturbed ones are kept, marked, and repeated.

A round is one prompt and `new_tokens - 1` steps of a single token. The loop is our own: it sees the
time of every token, and contains only the model, an argmax and the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from prunebench.callbacks import ignore
from prunebench.experiment.measures import LatencySpec
from prunebench.isolation.garbage import no_collection
from prunebench.measure.devices.disturbance import Watch
from prunebench.measure.speed.execution import Decoder


@dataclass(frozen=True)
class Round:
    """One round of one model, in seconds."""

    ttft_s: float
    inter_token_s: list[float]
    disturbed: str | None = None
    """What disturbed it, in words."""

    @property
    def seconds(self) -> float:
        return self.ttft_s + sum(self.inter_token_s)


@dataclass
class Rounds:
    """What was timed: one list of rounds for each model; rounds of one number are neighbours."""

    models: list[list[Round]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.models[0])

    def disturbed(self, number: int) -> str | None:
        """What disturbed any model's round of this number: a ratio needs both of a pair clean."""
        return next(
            (each[number].disturbed for each in self.models if each[number].disturbed), None
        )

    def clean(self) -> Rounds:
        """The rounds in which no model was disturbed."""
        kept = [number for number in range(self.count) if self.disturbed(number) is None]
        return Rounds([[each[number] for number in kept] for each in self.models])

    def seconds(self, model: int = 0) -> float:
        return sum(each.seconds for each in self.models[model])


def time_rounds(
    decoders: Sequence[Decoder],
    prompt: Tensor,
    spec: LatencySpec,
    fewest: int,
    watch: Watch,
    wait: Callable[[], None] = ignore,
) -> Rounds:
    """Time ``decoders`` in turn until ``fewest`` clean rounds and the minimum time are reached.

    The minimum time of ``spec`` counts the clean rounds of the first decoder. Rounds that are
    disturbed are repeated, until all rounds together took ``spec.patience`` times as long as they
    would have taken undisturbed; ``fewest`` rounds are always taken.
    """
    found = Rounds([[] for _ in decoders])
    gc.collect()  # what is left from before would keep its memory through all rounds
    with no_collection():
        while True:
            clean = found.clean()
            if clean.count >= fewest and clean.seconds() >= spec.min_time_s:
                return found
            if found.count >= fewest and _spent(found) >= spec.patience * _planned(
                found, spec, fewest
            ):
                return found
            # Neighbouring rounds see the same machine, so what slows both cancels in their ratio;
            # changing the order cancels what the first round of a pair does to the second.
            order = list(range(len(decoders)))
            for model in order if found.count % 2 else reversed(order):
                before = watch.read()
                ttft, inter_token = one_round(decoders[model], prompt, spec.new_tokens, wait)
                disturbed = watch.disturbed(before, watch.read())
                found.models[model].append(Round(ttft, inter_token, disturbed))


def one_round(
    decoder: Decoder, prompt: Tensor, new_tokens: int, wait: Callable[[], None] = ignore
) -> tuple[float, list[float]]:
    """(seconds to the first token, seconds from each token to the next) of one round.

    ``prompt`` is int64 [batch, prompt]; ``wait`` blocks until the device is done (`synchroniser`).
    """
    times = []
    wait()  # work queued before the round must not count
    before = time.perf_counter()
    tokens = decoder.prompt(prompt)  # [batch, 1]
    for remaining in range(new_tokens - 1, -1, -1):
        # A GPU call returns when its kernels are queued: the token exists only after the wait.
        # One clock reading ends a token and begins the next, so no time falls between them.
        wait()
        now = time.perf_counter()
        times.append(now - before)
        before = now
        if remaining:
            tokens = decoder.step(tokens)  # [batch, 1]
    return times[0], times[1:]


def _spent(found: Rounds) -> float:
    return sum(found.seconds(model) for model in range(len(found.models)))


def _planned(found: Rounds, spec: LatencySpec, fewest: int) -> float:
    """Seconds that all rounds together would take on an undisturbed machine.

    The fastest round of each model stands for an undisturbed one: a disturbance only slows.
    """
    fastest = [min(each.seconds for each in rounds) for rounds in found.models]
    needed = max(fewest, spec.min_time_s / fastest[0] if fastest[0] else 0)
    return needed * sum(fastest)
