"""Time the sessions of a runtime in turn, as `rounds` times decoders.

A server takes no token from outside, so a session only gives its own: the tokens of a round are
those that the engine chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices.disturbance import Watch
from prunebench.measure.speed.latency import clean_needed, fewest_rounds, steps_of, too_few
from prunebench.measure.speed.rounds import Round, Rounds, one_round, time_rounds
from prunebench.measure.speed.summary import paired_ratio, summary
from prunebench.record.runtimes import RuntimeLatency

NEAR = 0.1
"""Tokens come together if the second follows within this share of the round's mean step."""
FEW = 0.05
"""Bursts, if more than this share of the steps is that short."""


class _Session(Protocol):
    def tokens(self, prompt: Sequence[int]) -> Iterator[int]: ...


class SessionDecoder:
    """A session as `rounds` wants it: a prompt, then step by step. It chooses the tokens itself."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._iterator: Iterator[int] = iter(())
        self.given: list[int] = []
        """The tokens since the last prompt."""

    def prompt(self, tokens: Tensor) -> Tensor:
        """int64 [1, prompt] -> the first new token, [1, 1]."""
        # A server may still be sending the end of the round before: that must not be in this one.
        self.end()
        self.given = []
        self._iterator = iter(self._session.tokens(tokens[0].tolist()))
        return self.step(tokens)

    def step(self, tokens: Tensor) -> Tensor:  # noqa: ARG002 - a session knows its last token
        """The next token, [1, 1]. Raises PrunebenchError if there is none."""
        token = next(self._iterator, None)
        if token is None:
            raise PrunebenchError(
                f"the runtime ended after {len(self.given)} tokens",
                hint="a session gives tokens until the length that it was opened with",
            )
        self.given.append(int(token))
        return torch.tensor([[token]])

    def end(self) -> None:
        """Let the session finish its round."""
        close: Any = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator = iter(())


def measure_sessions(
    sessions: Sequence[_Session],
    prompt: Tensor,
    spec: LatencySpec,
    threads: int,
    watch: Watch,
) -> tuple[RuntimeLatency, list[int]]:
    """Time the session of the pruned model, and that of dense if there is one, in turn.

    ``prompt`` is int64 [1, prompt]. Returns the figures, and the tokens of the first session. The
    first round of each is not timed. Raises PrunebenchError if a session ends early.
    """
    decoders = [SessionDecoder(session) for session in sessions]
    # The first round of an engine allocates, packs weights and starts its threads.
    for each in decoders:
        one_round(each, prompt, spec.new_tokens)
    tokens = decoders[0].given
    rounds = time_rounds(decoders, prompt, spec, fewest_rounds(spec, len(decoders)), watch)
    for each in decoders:
        each.end()
    found = _figures(rounds, spec, threads)
    found.not_watched = watch.blind
    return found, tokens


def _figures(rounds: Rounds, spec: LatencySpec, threads: int) -> RuntimeLatency:
    clean = rounds.clean()
    found = RuntimeLatency(
        prompt=spec.prompt,
        new_tokens=spec.new_tokens,
        threads=threads,
        rounds=clean.count,
        disturbed_rounds=rounds.count - clean.count,
        bursts=_mostly_bursts(clean),
    )
    needed = clean_needed(spec, len(rounds.models))
    if clean.count < needed:
        found.not_measurable = too_few(rounds, needed)
        return found
    pruned, *others = clean.models
    found.ttft_s = summary([each.ttft_s for each in pruned])
    found.token_s = summary(_steps(pruned, bursts=found.bursts))
    for dense in others:
        found.dense_ttft_s = summary([each.ttft_s for each in dense])
        found.dense_token_s = summary(_steps(dense, bursts=found.bursts))
        found.ttft_speedup = paired_ratio(
            [each.ttft_s for each in dense], [each.ttft_s for each in pruned]
        )
        # Of means: they are right whether or not tokens come in bursts.
        found.token_speedup = paired_ratio(
            [_mean_step(each) for each in dense], [_mean_step(each) for each in pruned]
        )
    return found


def _mostly_bursts(rounds: Rounds) -> bool:
    """Whether most rounds have bursts: in a single one the reader may have been kept waiting."""
    every = [come_in_bursts(each) for each in chain.from_iterable(rounds.models)]
    return sum(every) > len(every) / 2


def come_in_bursts(timed: Round) -> bool:
    """Whether tokens of a round came together that were computed one after another."""
    near = NEAR * _mean_step(timed)
    short = sum(step < near for step in timed.inter_token_s)
    return short > FEW * len(timed.inter_token_s)


def _mean_step(timed: Round) -> float:
    return sum(timed.inter_token_s) / len(timed.inter_token_s)


def _steps(rounds: Sequence[Round], *, bursts: bool) -> list[float]:
    if bursts:
        return [_mean_step(each) for each in rounds]
    return steps_of(rounds)
