"""Latency of greedy decoding with a KV cache, measured apart for prompt and generation phase.

If there is a dense model, its rounds alternate with those of the pruned model (`rounds`). Only
rounds that nothing disturbed count; without enough of them there is a reason instead of a figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from prunebench.experiment.measures import LatencySpec
from prunebench.measure.devices.disturbance import Watch, cause
from prunebench.measure.devices.watch import watch_of
from prunebench.measure.speed.execution import ExecutionChoice, choose
from prunebench.measure.speed.intervals import CONFIDENCE, fewest_samples
from prunebench.measure.speed.rounds import Round, Rounds, one_round, time_rounds
from prunebench.measure.speed.summary import paired_ratio, summary
from prunebench.measure.speed.weight_pages import put_side_by_side
from prunebench.measure.synchronise import synchroniser
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions
from prunebench.record.speed import Latency, LatencySamples

PAIRED_ROUNDS = 8
"""At least so many pairs are timed.

Six give a 95 % interval of the median, but the best of many cells needs more: with eight pairs the
smallest ratio is a 95 % lower bound for all of up to 12 cells together. An even number lets each
model go first equally often.
"""


@torch.inference_mode()
def measure_latency(
    model: Any,
    prompt: Tensor,
    spec: LatencySpec,
    *,
    dense: Any = None,
    device: str | torch.device | None = None,
    watch: Watch | None = None,
) -> tuple[Latency, LatencySamples]:
    """Time ``model`` on ``prompt``, int64 [batch, prompt], until both minima of ``spec`` are met.

    The minimum time counts the model's own rounds only. If ``dense`` is given, rounds of the two
    models alternate, which of them goes first alternates too, and there are at least eight; both
    run in the same execution form, and the speed-ups are paired ratios. Warm-up is at the measured
    shape. ``device`` is where both models are, by default where ``model`` takes its tokens.

    ``watch`` tells which rounds were disturbed; by default it watches ``device``. Disturbed rounds
    are in the samples, marked, and in no figure. If too few rounds were clean, all figures are None
    and `Latency.not_measurable` says why.

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
    for each in models:
        put_side_by_side(each)
    chosen = choose(models, prompt, spec.new_tokens, spec.execution)
    warmup = 3 if where.type == "cuda" else 1
    # If `choose` compared the tokens of two forms, that was already a first round of each decoder.
    checked = 0 if chosen.same_tokens is None else 1
    for each in chosen.decoders * (warmup - checked):
        one_round(each, prompt, spec.new_tokens, wait)
    watch = watch or watch_of(str(where))
    fewest = fewest_rounds(spec, len(models))
    rounds = time_rounds(chosen.decoders, prompt, spec, fewest, watch, wait)
    latency = _latency(spec, str(where), warmup, chosen, rounds)
    latency.not_watched = watch.blind
    return latency, _samples(rounds)


def _latency(
    spec: LatencySpec, device: str, warmup: int, chosen: ExecutionChoice, rounds: Rounds
) -> Latency:
    clean = rounds.clean()
    products = chosen.products
    latency = Latency(
        prompt=spec.prompt,
        new_tokens=spec.new_tokens,
        batch_size=spec.batch_size,
        device=device,
        execution=chosen.form,
        same_tokens=chosen.same_tokens,
        execution_notes=chosen.notes,
        second_copy_bytes=products.copied_bytes if products else 0,
        products=products.kernels if products else {},
        warmup_rounds=warmup,
        rounds=clean.count,
        disturbed_rounds=rounds.count - clean.count,
    )
    needed = clean_needed(spec, len(rounds.models))
    if clean.count < needed:
        latency.not_measurable = too_few(rounds, needed)
        return latency
    pruned, *others = clean.models
    latency.ttft_s = summary([each.ttft_s for each in pruned])
    latency.inter_token_s = summary(steps_of(pruned))
    latency.tokens_per_s = spec.batch_size / latency.inter_token_s.mean
    for dense in others:
        latency.dense_ttft_s = summary([each.ttft_s for each in dense])
        latency.dense_inter_token_s = summary(steps_of(dense))
        latency.ttft_speedup = paired_ratio(
            [each.ttft_s for each in dense], [each.ttft_s for each in pruned]
        )
        latency.inter_token_speedup = paired_ratio(_medians(dense), _medians(pruned))
    return latency


def fewest_rounds(spec: LatencySpec, models: int) -> int:
    """How many rounds to time at least, of one model or of a pair in turn."""
    return spec.min_rounds if models == 1 else max(spec.min_rounds, PAIRED_ROUNDS)


def clean_needed(spec: LatencySpec, models: int) -> int:
    """How many undisturbed rounds give a figure.

    Fewer pairs give a ratio no interval; a time alone needs only the rounds of the suite.
    """
    needed = fewest_samples((1 - CONFIDENCE) / 2)
    return min(spec.min_rounds, needed) if models == 1 else needed


def _samples(rounds: Rounds) -> LatencySamples:
    """All rounds, the disturbed ones too, with what disturbed each."""
    pruned, *others = rounds.models
    samples = LatencySamples(
        ttft_s=[each.ttft_s for each in pruned],
        inter_token_s=[each.inter_token_s for each in pruned],
        disturbed=[rounds.disturbed(number) for number in range(rounds.count)],
    )
    for dense in others:
        samples.dense_ttft_s = [each.ttft_s for each in dense]
        samples.dense_inter_token_s = [each.inter_token_s for each in dense]
    return samples


def too_few(rounds: Rounds, needed: int) -> str:
    """Why there is no figure: how many rounds were clean, and what disturbed most of the others."""
    causes = Counter(
        cause(reason)
        for number in range(rounds.count)
        if (reason := rounds.disturbed(number)) is not None
    )
    clean = rounds.clean().count
    return (
        f"{clean} of {rounds.count} rounds were undisturbed and {needed} are needed: "
        f"{causes.most_common(1)[0][0]}"
    )


def steps_of(rounds: Sequence[Round]) -> list[float]:
    """The times between tokens of all rounds, in seconds."""
    return list(chain.from_iterable(each.inter_token_s for each in rounds))


def _medians(rounds: list[Round]) -> list[float]:
    return [summary(each.inter_token_s).median for each in rounds]
