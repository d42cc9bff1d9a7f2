"""Latency of greedy decoding with a KV cache, measured apart for prompt and generation phase.

A round is one prompt and `new_tokens - 1` steps of a single token. If there is a dense model, its
rounds alternate with those of the pruned model. The loop is our own: it sees the time of every
token, and contains only the model, an argmax and the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from prunebench.callbacks import ignore
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.speed.execution import Decoder, ExecutionChoice, choose
from prunebench.measure.speed.summary import paired_ratio, summary
from prunebench.measure.synchronise import synchroniser
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions
from prunebench.record.speed import Latency, LatencySamples

PAIRED_ROUNDS = 6
"""Fewer pairs give no 95 % interval of the median (see `paired_ratio`).

An even number lets each model go first equally often.
"""


@dataclass
class _Timed:
    """A model in its execution form, and its samples in seconds."""

    decoder: Decoder
    ttft: list[float] = field(default_factory=list)
    inter_token: list[list[float]] = field(default_factory=list)
    spent: float = 0.0


@torch.inference_mode()
def measure_latency(
    model: Any,
    prompt: Tensor,
    spec: LatencySpec,
    *,
    dense: Any = None,
    device: str | torch.device | None = None,
) -> tuple[Latency, LatencySamples]:
    """Time ``model`` on ``prompt``, int64 [batch, prompt], until both minima of ``spec`` are met.

    The minimum time counts the model's own rounds only. If ``dense`` is given, rounds of the two
    models alternate, which of them goes first alternates too, and there are at least six; both run
    in the same execution form, and the speed-ups are paired ratios. Warm-up is at the measured
    shape. ``device`` is where both models are, by default where ``model`` takes its tokens.

    Raises PrunebenchError if the model has too few positions or cannot run in the form that
    ``spec`` asks for, ValueError if ``prompt`` does not have the shape in ``spec``.
    """
    if prompt.shape != (spec.batch_size, spec.prompt):
        raise ValueError(
            f"the prompt is {list(prompt.shape)}, not {[spec.batch_size, spec.prompt]}"
        )
    check_positions(model, spec.prompt + spec.new_tokens, "the latency shape")
    where = torch.device(device) if device is not None else input_device(model)
    prompt = prompt.to(where)
    wait = synchroniser(where.type)
    models = [each.eval() for each in (model, dense) if each is not None]
    chosen = choose(models, prompt, spec.new_tokens, spec.execution)
    timed = [_Timed(each) for each in chosen.decoders]
    warmup = 3 if where.type == "cuda" else 1
    # If `choose` compared the tokens of two forms, that was already a first round of each decoder.
    checked = 0 if chosen.same_tokens is None else 1
    for each in timed * (warmup - checked):
        one_round(each.decoder, prompt, spec.new_tokens, wait)
    least = spec.min_rounds if dense is None else max(spec.min_rounds, PAIRED_ROUNDS)
    with _no_collection():
        # Pairs of neighbouring rounds see the same machine load, so the load cancels in the ratio;
        # alternating the order cancels what the first round of a pair does to the second.
        while len(timed[0].ttft) < least or timed[0].spent < spec.min_time_s:
            for each in timed if len(timed[0].ttft) % 2 else reversed(timed):
                ttft, inter_token = one_round(each.decoder, prompt, spec.new_tokens, wait)
                each.ttft.append(ttft)
                each.inter_token.append(inter_token)
                each.spent += ttft + sum(inter_token)
    return _result(spec, str(where), warmup, chosen, *timed)


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


def _result(
    spec: LatencySpec,
    device: str,
    warmup: int,
    chosen: ExecutionChoice,
    pruned: _Timed,
    dense: _Timed | None = None,
) -> tuple[Latency, LatencySamples]:
    steps = summary(list(chain.from_iterable(pruned.inter_token)))
    latency = Latency(
        prompt=spec.prompt,
        new_tokens=spec.new_tokens,
        batch_size=spec.batch_size,
        device=device,
        execution=chosen.form,
        same_tokens=chosen.same_tokens,
        execution_notes=chosen.notes,
        warmup_rounds=warmup,
        rounds=len(pruned.ttft),
        ttft_s=summary(pruned.ttft),
        inter_token_s=steps,
        tokens_per_s=spec.batch_size / steps.mean,
    )
    samples = LatencySamples(ttft_s=pruned.ttft, inter_token_s=pruned.inter_token)
    if dense is not None:
        latency.dense_ttft_s = summary(dense.ttft)
        latency.dense_inter_token_s = summary(list(chain.from_iterable(dense.inter_token)))
        latency.ttft_speedup = paired_ratio(dense.ttft, pruned.ttft)
        latency.inter_token_speedup = paired_ratio(_medians(dense), _medians(pruned))
        samples.dense_ttft_s = dense.ttft
        samples.dense_inter_token_s = dense.inter_token
    return latency, samples


def _medians(timed: _Timed) -> list[float]:
    return [summary(each).median for each in timed.inter_token]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the rounds; collect once before."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
