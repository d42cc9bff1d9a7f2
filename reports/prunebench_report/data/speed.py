"""Latency beside dense, as columns of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row, numbered

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record
    from prunebench.record.speed import Latency, Ratio, Summary

AS_STORED = "as stored"
SPARSE = "2:4 kernels"
CONTENDED = 0.1
"""Timed beside others that used more than this share of the cores: no evidence of a speed."""

Shape = tuple[int, int, int]
"""Prompt tokens, new tokens, batch size."""


def shape_of(one: Latency | GenerationIO) -> Shape:
    return one.prompt, one.new_tokens, one.batch_size


def stored_latencies(record: Record | None) -> list[Latency]:
    """The latencies of the model as stored, one for each shape; tables and verdict use these."""
    every = record.speed.latency if record and record.speed else []
    return [one for one in every if one.weights == AS_STORED]


def sparse_latency(record: Record, one: Latency) -> Latency | None:
    """The same shape timed with 2:4 kernels; None if it was not."""
    every = record.speed.latency if record.speed else []
    alike = (d for d in every if d.weights == SPARSE and shape_of(d) == shape_of(one))
    return next(alike, None)


def latency_protocol(one: Latency) -> str:
    """Everything that identifies a latency, in one line."""
    kernels = "" if one.weights == AS_STORED else f", {one.weights}"
    return (
        f"prompt {one.prompt}, {one.new_tokens} new tokens, batch {one.batch_size}, {one.device}, "
        f"{one.execution}{kernels}"
    )


def speed_columns(record: Record, dense: Record | None, floors: Sequence[GenerationIO]) -> Row:
    """One numbered set for each shape; ``floors`` are those of the record (`generation_floors`)."""
    # Reversed, so that the first latency of a shape wins.
    references = {shape_of(one): one for one in reversed(stored_latencies(dense))}
    is_dense = dense is not None and dense.id == record.id
    row: Row = {}
    for index, one in enumerate(stored_latencies(record)):
        reference = references.get(shape_of(one))
        first = reference.ttft_s if reference else None
        between = reference.inter_token_s if reference else None
        values: Row = {
            "dense_ttft_p50_s": one.dense_ttft_s and one.dense_ttft_s.median,
            "dense_inter_token_p50_s": one.dense_inter_token_s and one.dense_inter_token_s.median,
            "tokens_per_s": one.tokens_per_s,
            "rounds": one.rounds,
            "disturbed_rounds": one.disturbed_rounds if _watched(record, one) else None,
            "speed_not_measurable": one.not_measurable,
            "latency_protocol": latency_protocol(one),
            "execution": one.execution,
            **_quantiles("ttft", one.ttft_s),
            **_quantiles("inter_token", one.inter_token_s),
            **_speedup("ttft", one.ttft_speedup, one.ttft_s, first),
            **_speedup("inter_token", one.inter_token_speedup, one.inter_token_s, between),
        }
        if not is_dense and values["inter_token_speedup"] is not None:
            values["speedup_paired"] = one.inter_token_speedup is not None
        if kernels := sparse_latency(record, one):
            ratio = kernels.inter_token_speedup
            values |= _speedup("sparse24", ratio, kernels.inter_token_s, between)
        values |= _io_floor(one, floors)
        row |= {numbered(name, index): value for name, value in values.items()}
    return row


def _watched(record: Record, one: Latency) -> bool:
    """Whether each round was watched for disturbances: not in older records, not on all systems."""
    raw = record.samples.latency if record.samples else []
    known = dict(zip(map(id, record.speed.latency if record.speed else []), raw, strict=False))
    samples = known.get(id(one))
    return one.not_watched is None and samples is not None and samples.disturbed is not None


def contended(row: Mapping[str, object]) -> bool:
    """Whether others used the cores while the cell was timed, and no round was watched for it."""
    share = row.get("cpu_others_share")
    return row.get("disturbed_rounds") is None and isinstance(share, float) and share > CONTENDED


def _quantiles(name: str, times: Summary | None) -> Row:
    if times is None:  # not measurable
        return dict.fromkeys((f"{name}_p50_s", f"{name}_p90_s", f"{name}_p99_s"))
    return {
        f"{name}_p50_s": times.median,
        f"{name}_p90_s": times.p90,
        f"{name}_p99_s": times.p99,
    }


def _speedup(name: str, paired: Ratio | None, mine: Summary | None, dense: Summary | None) -> Row:
    """The paired ratio with its interval; otherwise the ratio of two cells timed apart, without."""
    key = f"{name}_speedup"
    if paired is not None:
        return {key: paired.estimate, f"{key}_low": paired.low, f"{key}_high": paired.high}
    return {key: dense.median / mine.median if dense and mine and mine.median else None}


def _io_floor(one: Latency, floors: Sequence[GenerationIO]) -> Row:
    """The I/O floor of the same shape."""
    # Entries for 2:4 kernels follow those of the model as stored, so take the first.
    io = next((floor for floor in floors if shape_of(floor) == shape_of(one)), None)
    if io is None:
        return {}
    return {
        "io_floor_s": io.floor_s,
        "io_utilisation": io.utilisation,
        "io_bytes_per_token": float(io.weight_bytes + io.kv_cache_bytes),
        "bandwidth_bytes_per_s": io.bandwidth_bytes_per_s,
    }
