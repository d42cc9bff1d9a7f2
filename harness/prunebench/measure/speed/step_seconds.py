"""Seconds of a generation step of models side by side, for methods that choose by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import torch

from prunebench.experiment.measures import Form
from prunebench.measure.devices.disturbance import DisturbedError, Watch
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.speed.execution import Decoder, Eager, choose, decoder
from prunebench.measure.speed.unavailable import UnavailableError
from prunebench.measure.synchronise import synchroniser
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions

CLEAN_ROUNDS = 3
"""Rounds of each pair. What a choice needs is an estimate of each difference, not an interval."""
MOST_ROUNDS = 12
"""Disturbed rounds are repeated until there are this many."""
CHECKED_TOKENS = 4
"""Tokens on which an execution form is compared with eager decoding."""


@torch.inference_mode()
def step_seconds(
    model: Any,
    others: Iterable[Any],
    *,
    batch_size: int,
    prompt: int,
    new_tokens: int,
    watch: Watch | None = None,
) -> list[tuple[float, float]]:
    """The median step of ``model`` and of each of ``others``, from rounds in which both take turns.

    A step computes one token for each of ``batch_size`` sequences, behind ``prompt`` tokens, and a
    round has ``new_tokens`` of them. Both run in the form that is the fastest for ``model``, or
    eagerly if the other one cannot. One of the others is in memory at a time, if they are made one
    by one. Raises DisturbedError if too few rounds of a pair were clean.
    """
    where = input_device(model)
    length = prompt + 2 + MOST_ROUNDS * new_tokens
    check_positions(model, length, "the shape to time")
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (batch_size, prompt), generator=generator).to(where)
    form = choose([model], ids, CHECKED_TOKENS).form
    watch = watch or watch_of(str(where))
    wait = synchroniser(where.type)
    # Made once for all pairs: it may pack its weights, or record a graph.
    own = _decoder(model, form, batch_size, length)
    found = []
    for other in others:
        its = _decoder(other, form, batch_size, length) if own else None
        decoders = [own, its] if own and its else [Eager(model), Eager(other)]
        found.append(_pair(decoders, ids, new_tokens, watch, wait))
        del other, its, decoders  # before the next one is made
    return found


def _decoder(model: Any, form: Form, batch_size: int, length: int) -> Decoder | None:
    """The model in this form; None if it cannot run in it."""
    try:
        return decoder(model, form, batch_size, length)
    except UnavailableError:
        return None


def _pair(
    decoders: Sequence[Decoder],
    ids: torch.Tensor,
    steps: int,
    watch: Watch,
    wait: Callable[[], None],
) -> tuple[float, float]:
    """The median step of each. One prompt serves all rounds: the prompt phase is not timed."""
    tokens = [each.step(each.prompt(ids)) for each in decoders]  # the first step warms up
    clean: list[list[list[float]]] = []
    reasons: list[str] = []
    for number in range(MOST_ROUNDS):
        times: list[list[float]] = [[], []]
        before = watch.read()
        # Which of them goes first alternates, so that what it does to the other cancels.
        for index in (0, 1) if number % 2 else (1, 0):
            for _ in range(steps):
                wait()
                begun = time.perf_counter()
                tokens[index] = decoders[index].step(tokens[index])
                wait()
                times[index].append(time.perf_counter() - begun)
        reason = watch.disturbed(before, watch.read())
        if reason is None:
            clean.append(times)
        else:
            reasons.append(reason)
        if len(clean) == CLEAN_ROUNDS:
            mine, theirs = (
                median(second for one in clean for second in one[index]) for index in (0, 1)
            )
            return mine, theirs
    raise DisturbedError(
        f"{len(clean)} of {MOST_ROUNDS} rounds were undisturbed and {CLEAN_ROUNDS} are needed:"
        f" {reasons[-1]}"
    )
