"""The latencies of one cell: quantiles, raw samples, and how they were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.speed import latency_protocol, sparse_latency, stored_latencies
from prunebench_report.figures.sparklines import sample_strip
from prunebench_report.text import Facts, count, number, seconds, size, times

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench.record.speed import Latency, LatencySamples, Ratio, Summary


def latencies(record: Record) -> list[dict[str, Any]]:
    """Every latency of a cell, 2:4 kernels included, each with its table and sample strip."""
    # Samples are stored in the order of the latencies; there may be fewer.
    raw = record.samples.latency if record.samples else []
    every = record.speed.latency if record.speed else []
    return [
        _latency(one, raw[index] if index < len(raw) else None) for index, one in enumerate(every)
    ]


def measured_speedup(record: Record) -> str | None:
    """The speed-up at the first shape, to show beside what was expected; None without one."""
    one = next(iter(stored_latencies(record)), None)
    if one is None or one.inter_token_speedup is None:
        return None
    text = f"{_interval(one.inter_token_speedup)} per token"
    kernels = sparse_latency(record, one)
    if kernels and kernels.inter_token_speedup:
        text += f", with 2:4 kernels {_interval(kernels.inter_token_speedup)}"
    return text


def _latency(one: Latency, raw: LatencySamples | None) -> dict[str, Any]:
    rows = [
        _quantiles("TTFT", one.ttft_s, one.ttft_speedup),
        _quantiles("TTFT of dense, interleaved", one.dense_ttft_s),
        _quantiles("Inter-token latency", one.inter_token_s, one.inter_token_speedup),
        _quantiles("Inter-token latency of dense, interleaved", one.dense_inter_token_s),
    ]
    return {
        "shape": latency_protocol(one),
        "rounds": _rounds(one),
        "tokens_per_s": number(one.tokens_per_s),
        "rows": [row for row in rows if row],
        "strip": sample_strip(raw),
        "facts": _facts(one),
    }


def _rounds(one: Latency) -> str:
    text = f"{one.rounds} rounds after {one.warmup_rounds} warm-up"
    if one.disturbed_rounds:
        text += f"; {one.disturbed_rounds} more were disturbed and do not count"
    return text


def _quantiles(name: str, summary: Summary | None, ratio: Ratio | None = None) -> list[str] | None:
    if summary is None:
        return None
    quantiles = (summary.minimum, summary.median, summary.p90, summary.p99, summary.maximum)
    against = _interval(ratio) if ratio else ""
    return [name, *map(seconds, quantiles), count(summary.count), against]


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return times(ratio.estimate)
    return f"{times(ratio.estimate)} ({ratio.low:.2f} to {ratio.high:.2f})"


def _facts(one: Latency) -> Facts:
    """How the latency was computed, if that needs a word."""
    found = []
    if one.not_measurable:
        found.append(("Not measurable here", one.not_measurable))
    if one.not_watched:
        found.append(("Disturbances are not known", one.not_watched))
    if one.same_tokens is not None:
        found.append(("Same tokens as eager", "yes" if one.same_tokens else "no"))
    if one.execution_notes:
        found.append(("Execution", "; ".join(one.execution_notes)))
    if one.second_copy_bytes:
        found.append(("Second copies of weights", f"{size(one.second_copy_bytes)}, in no figure"))
    if one.unpaired:
        found.append(("Not paired with dense", one.unpaired))
    return found
