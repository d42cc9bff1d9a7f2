"""Latency of greedy decoding with a KV cache: prompt phase and generation phase apart, dense rounds in between.

A round is one prompt and `new_tokens - 1` single-token steps. The loop is our own, so that every token's time is seen
and nothing but the model, an argmax and the clock stands in it.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from prunebench.measure.positions import check_positions
from prunebench.measure.results import Latency, LatencySamples
from prunebench.measure.spec import LatencySpec
from prunebench.measure.statistics import paired_ratio, summary

EXECUTION = "eager, dynamic KV cache"
PAIRED_ROUNDS = 6
"""Fewer pairs bound no median at 95 % (see `paired_ratio`); an even number gives both models the first place as often."""


@dataclass
class _Timed:
    """A model and its samples, seconds."""

    model: Any
    keywords: dict[str, Any]
    ttft: list[float] = field(default_factory=list)
    inter_token: list[list[float]] = field(default_factory=list)
    spent: float = 0.0


@torch.inference_mode()
def measure_latency(
    model: Any, prompt: Tensor, spec: LatencySpec, *, dense: Any = None, device: str | torch.device | None = None
) -> tuple[Latency, LatencySamples]:
    """Time ``model`` on ``prompt``, int64 [batch, prompt], until both minima of ``spec`` are met.

    The minimum time counts the model's own rounds. With ``dense`` given its rounds alternate with the model's, which
    of them goes first too, and there are at least six; the speed-ups are paired ratios. Warm-up is at the measured
    shape. ``device`` is where both models lie, by default where the first one's embedding does. Raises PrunebenchError
    where the model has no positions for so many tokens, ValueError where ``prompt`` is not of the shape in ``spec``.
    """
    if prompt.shape != (spec.batch_size, spec.prompt):
        raise ValueError(f"the prompt is {list(prompt.shape)}, not {[spec.batch_size, spec.prompt]}")
    check_positions(model, spec.prompt + spec.new_tokens, "the latency shape")
    where = torch.device(device) if device is not None else model.get_input_embeddings().weight.device
    prompt = prompt.to(where)
    synchronise = torch.cuda.synchronize if where.type == "cuda" else _nothing
    timed = [_Timed(each, _keywords(each)) for each in (model, dense) if each is not None]
    warmup = 3 if where.type == "cuda" else 1
    for each in timed * warmup:
        each.model.eval()
        _round(each, prompt, spec.new_tokens, synchronise)
    least = spec.min_rounds if dense is None else max(spec.min_rounds, PAIRED_ROUNDS)
    with _no_collection():
        while len(timed[0].ttft) < least or timed[0].spent < spec.min_time_s:
            for each in timed if len(timed[0].ttft) % 2 else reversed(timed):
                ttft, inter_token = _round(each, prompt, spec.new_tokens, synchronise)
                each.ttft.append(ttft)
                each.inter_token.append(inter_token)
                each.spent += ttft + sum(inter_token)
    return _result(spec, str(where), warmup, *timed)


def _round(
    timed: _Timed, prompt: Tensor, new_tokens: int, synchronise: Callable[[], None]
) -> tuple[float, list[float]]:
    """Seconds to the first token, and from each token to the next."""
    model, keywords = timed.model, timed.keywords
    cache = DynamicCache(config=model.config)
    tokens = prompt
    times = []
    synchronise()
    before = time.perf_counter()
    for _ in range(new_tokens):
        logits = model(tokens, past_key_values=cache, use_cache=True, **keywords).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)  # [batch, 1]
        synchronise()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times[0], times[1:]


def _keywords(model: Any) -> dict[str, Any]:
    """Only the last position's logits are needed; nearly every family lets one say so."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _result(
    spec: LatencySpec, device: str, warmup: int, pruned: _Timed, dense: _Timed | None = None
) -> tuple[Latency, LatencySamples]:
    steps = summary(list(chain.from_iterable(pruned.inter_token)))
    latency = Latency(
        prompt=spec.prompt,
        new_tokens=spec.new_tokens,
        batch_size=spec.batch_size,
        device=device,
        execution=EXECUTION,
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
    """Keep the garbage collector out of the rounds; what there is goes first."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _nothing() -> None:
    """The CPU has finished when a call returns."""
