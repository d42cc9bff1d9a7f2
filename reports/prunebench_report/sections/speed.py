"""Latency beside dense: columns of the one table, and in which forms the weights and the loop ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.data import columns as fields
from prunebench_report.text import clean, finite, times

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record
    from prunebench.record.speed import Latency, LatencySamples, Ratio

AS_STORED = "as stored"
SPARSE = "2:4 kernels"


def stored(record: Record | None) -> list[Latency]:
    """The latencies of the model as it is, one a shape: what tables and headlines are about."""
    return (
        [one for one in record.speed.latency if one.weights == AS_STORED]
        if record and record.speed
        else []
    )


def timed(record: Record) -> list[tuple[Latency, LatencySamples | None]]:
    """Every latency, those with other kernels too, with its raw samples."""
    raw = record.samples.latency if record.samples else []
    every = record.speed.latency if record.speed else []
    return [(one, raw[index] if index < len(raw) else None) for index, one in enumerate(every)]


def sparse(record: Record, one: Latency) -> Latency | None:
    """The same shape through 2:4 kernels, where it was timed."""
    every = record.speed.latency if record.speed else []
    return next(
        (other for other in every if other.weights == SPARSE and _size(other) == _size(one)), None
    )


def shape(one: Latency) -> str:
    """Everything that names a latency, in one line."""
    kernels = "" if one.weights == AS_STORED else f", {one.weights}"
    return (
        f"prompt {one.prompt}, {one.new_tokens} new tokens, batch {one.batch_size}, {one.device}, "
        f"{one.execution}{kernels}"
    )


def columns(record: Record, dense: Record | None) -> dict[str, Any]:
    """The cells of one row."""
    row: dict[str, Any] = {}
    is_dense = dense is not None and dense.id == record.id
    for index, one in enumerate(stored(record)):
        other = next((other for other in stored(dense) if _size(other) == _size(one)), None)
        values: dict[str, Any] = {
            "tokens_per_s": one.tokens_per_s,
            "rounds": one.rounds,
            "latency_protocol": shape(one),
            "execution": one.execution,
        }
        for name, mine, ratio, theirs in (
            ("ttft", one.ttft_s, one.ttft_speedup, other and other.ttft_s),
            (
                "inter_token",
                one.inter_token_s,
                one.inter_token_speedup,
                other and other.inter_token_s,
            ),
        ):
            values |= {
                f"{name}_p50_s": mine.median,
                f"{name}_p90_s": mine.p90,
                f"{name}_p99_s": mine.p99,
            }
            apart = theirs.median / mine.median if theirs and mine.median else None
            values |= _speedup(f"{name}_speedup", ratio, apart)
        if not is_dense and values.get("inter_token_speedup") is not None:
            values["speedup_paired"] = one.inter_token_speedup is not None
        if kernels := sparse(record, one):
            median = kernels.inter_token_s.median
            apart = other.inter_token_s.median / median if other and median else None
            values |= _speedup("sparse24_speedup", kernels.inter_token_speedup, apart)
        if io := _floor(record, one):
            values |= {"io_floor_s": io.floor_s, "io_utilisation": io.utilisation}
            values["io_bytes_per_token"] = float(io.weight_bytes + io.kv_cache_bytes)
            values["bandwidth_bytes_per_s"] = io.bandwidth_bytes_per_s
        row |= {fields.numbered(name, index): finite(value) for name, value in values.items()}
    return row


def said(record: Record) -> str | None:
    """What was measured at the first shape, for beside a sentence about what can be expected."""
    one = next(iter(stored(record)), None)
    if one is None or one.inter_token_speedup is None:
        return None
    text = f"measured {_interval(one.inter_token_speedup)} dense speed per token"
    kernels = sparse(record, one)
    if kernels and kernels.inter_token_speedup:
        text += f", with 2:4 kernels {_interval(kernels.inter_token_speedup)}"
    return text


def facts(one: Latency) -> list[tuple[str, str]]:
    """How a latency was computed, where there is anything to say of it."""
    found = []
    if one.same_tokens is not None:
        found.append(("Same tokens as eager", "yes" if one.same_tokens else "no"))
    if one.execution_notes:
        found.append(("Execution", "; ".join(one.execution_notes)))
    if one.unpaired:
        found.append(("Not paired with dense", one.unpaired))
    return found


def warnings(records: Sequence[Record]) -> list[str]:
    """Rows whose times stand side by side though they ran otherwise, one sentence a kind."""
    forms: dict[tuple[str, ...], list[str]] = {}
    reasons: dict[str, int] = {}
    for record in records:
        for one in stored(record):
            key = (record.cell.model.name, *map(str, _size(one)))
            forms.setdefault(key, []).append(one.execution)
        if reason := next((one.unpaired for one in stored(record) if one.unpaired), None):
            reasons[reason] = reasons.get(reason, 0) + 1
    mixed = [kinds for kinds in forms.values() if len(set(kinds)) > 1]
    found = []
    if mixed:
        kinds = mixed[0]
        told = ", ".join(f"{kinds.count(kind)} {clean(kind)}" for kind in dict.fromkeys(kinds))
        found.append(
            f"Cells of one table ran in different execution forms ({told}): compare speed-ups, which are against "
            "dense in the same form, not milliseconds of different rows."
        )
    found += [
        f"{count} cell{'s' if count > 1 else ''} not timed between rounds of dense: {clean(reason)}."
        for reason, count in reasons.items()
    ]
    return found


def _floor(record: Record, one: Latency) -> GenerationIO | None:
    """The I/O floor of the same shape; those of other kernels stand behind it."""
    every = record.io.generation if record.io else []
    return next((io for io in every if _size(io) == _size(one)), None)


def _size(one: Latency | GenerationIO) -> tuple[int, int, int]:
    return one.prompt, one.new_tokens, one.batch_size


def _interval(ratio: Ratio) -> str:
    return f"{times(ratio.estimate)} ({ratio.low:.2f} to {ratio.high:.2f})"


def _speedup(key: str, ratio: Ratio | None, apart: float | None) -> dict[str, Any]:
    """The paired ratio where there is one, else that of two cells timed apart, without an interval."""
    if ratio is None:
        return {key: apart}
    return {key: ratio.estimate, f"{key}_low": ratio.low, f"{key}_high": ratio.high}
