"""Seconds of a generation step of several models side by side, for methods that choose by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import median
from typing import Any

import torch

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices.disturbance import DisturbedError, Watch
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.speed.execution import choose
from prunebench.measure.speed.rounds import one_round, time_rounds
from prunebench.measure.synchronise import synchroniser
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions

CLEAN_ROUNDS = 3
"""Rounds of each model. What a choice needs is an estimate of each difference, not an interval."""
PATIENCE = 5.0
"""Disturbed rounds are repeated until this many times the planned time has passed."""


@torch.inference_mode()
def step_seconds(
    models: Sequence[Any],
    *,
    batch_size: int,
    prompt: int,
    new_tokens: int,
    watch: Watch | None = None,
) -> list[float]:
    """The median step of each model, in seconds, over rounds in which they take turns.

    A step computes one token for each of ``batch_size`` sequences, behind ``prompt`` tokens. All
    models run in the same execution form, the fastest that gives eager decoding's tokens. Raises
    DisturbedError if too few rounds were clean.
    """
    spec = LatencySpec(
        prompt=prompt,
        new_tokens=new_tokens,
        batch_size=batch_size,
        min_rounds=CLEAN_ROUNDS,
        min_time_s=0,
        patience=PATIENCE,
    )
    where = input_device(models[0])
    vocabulary = models[0].get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (batch_size, prompt), generator=generator).to(where)
    for model in models:
        check_positions(model, prompt + new_tokens, "the shape to time")
    wait = synchroniser(where.type)
    chosen = choose(models, ids, new_tokens)
    for each in chosen.decoders:  # a first round, whatever `choose` ran before
        one_round(each, ids, new_tokens, wait)
    rounds = time_rounds(
        chosen.decoders, ids, spec, CLEAN_ROUNDS, watch or watch_of(str(where)), wait
    )
    clean = rounds.clean()
    if clean.count < CLEAN_ROUNDS:
        reasons = filter(None, map(rounds.disturbed, range(rounds.count)))
        raise DisturbedError(
            f"{clean.count} of {rounds.count} rounds were undisturbed and {CLEAN_ROUNDS} are"
            f" needed: {next(reasons)}"
        )
    return [
        median(chain.from_iterable(each.inter_token_s for each in model)) for model in clean.models
    ]
