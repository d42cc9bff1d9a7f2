"""Speed in the engines that serve models, as columns of the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.speed import shape_of

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record
    from prunebench.record.runtimes import RuntimeLatency, RuntimeResult, TokenAgreement

RuntimeKey = tuple[str, int, int]
"""What two figures must share to be in one column: the runtime with all its options, the prompt and
the new tokens."""


class Timed(NamedTuple):
    """A runtime at one shape; ``latency`` is None if there is no figure."""

    result: RuntimeResult
    latency: RuntimeLatency | None


def runtimes_by_key(record: Record | None) -> dict[RuntimeKey, Timed]:
    """Every runtime of a record at every shape with batch size 1."""
    if record is None:
        return {}
    shapes = [shape for shape in record.cell.latency if shape.batch_size == 1]
    found: dict[RuntimeKey, Timed] = {}
    # A failed cell may have fewer results than planned runtimes.
    for ref, result in zip(record.cell.runtimes, record.runtimes, strict=False):
        identity = json.dumps(ref.identity(), sort_keys=True)
        # Engines take one sequence, so a shape is known by its two lengths.
        timed = {(one.prompt, one.new_tokens): one for one in result.latency}
        for shape in shapes:
            size = (shape.prompt, shape.new_tokens)
            # With a reason no figure counts: the engine computes another model.
            latency = None if result.reason is not None else timed.get(size)
            found.setdefault((identity, *size), Timed(result, latency))
    return found


def runtime_keys(records: Sequence[Record]) -> list[RuntimeKey]:
    """Every runtime and shape of these records once, in order of appearance."""
    return list(dict.fromkeys(key for record in records for key in runtimes_by_key(record)))


def runtime_columns(record: Record, keys: Sequence[RuntimeKey]) -> Row:
    """One numbered set for each of ``keys``, so that a runtime has the same number in every row."""
    row: Row = {}
    mine = runtimes_by_key(record)
    # A runtime that a record lacks keeps its number free, so that columns keep their meaning.
    for index, key in enumerate(keys):
        if key not in mine:
            continue
        result, one = mine[key]
        values: Row = {
            "runtime": result.runtime,
            "runtime_precision": result.precision,
            "runtime_protocol": protocol(result, key),
            "runtime_reason": result.reason or (one and one.not_measurable),
            "runtime_convert_s": result.conversion and result.conversion.seconds,
            "runtime_bytes": result.conversion and result.conversion.bytes,
        }
        if one is not None:
            first, step = one.ttft_speedup, one.token_speedup
            values |= {
                "runtime_ttft_p50_s": one.ttft_s and one.ttft_s.median,
                "runtime_token_p50_s": one.token_s and one.token_s.median,
                # In bursts the tail says when tokens were sent, not when they were made.
                "runtime_token_p99_s": one.token_s.p99 if one.token_s and not one.bursts else None,
                "runtime_ttft_speedup": first and first.estimate,
                "runtime_ttft_speedup_low": first and first.low,
                "runtime_ttft_speedup_high": first and first.high,
                "runtime_speedup": step and step.estimate,
                "runtime_speedup_low": step and step.low,
                "runtime_speedup_high": step and step.high,
                "runtime_rounds": one.rounds,
                "runtime_tokens": one.tokens and tokens_in_words(one.tokens),
            }
        row |= {numbered(name, index): value for name, value in values.items()}
    return row


def protocol(result: RuntimeResult, key: RuntimeKey) -> str:
    """Everything that identifies a figure, in one line."""
    _, prompt, new_tokens = key
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    threads = next((f", {one.threads} threads" for one in result.latency), "")
    name = result.runtime
    if result.precision not in name:
        name += f", {result.precision}"
    return f"{name}, prompt {prompt}, {new_tokens} new tokens, batch 1{threads}" + (
        f", {versions}" if versions else ""
    )


def tokens_in_words(found: TokenAgreement) -> str:
    """Whether the tokens are those of the model's own code."""
    if found.first_difference is None:
        return f"same {found.compared} tokens"
    if found.same:
        return f"same tokens up to a tie at {found.first_difference + 1} of {found.compared}"
    return f"other tokens from {found.first_difference + 1} of {found.compared} on"


def bytes_speedup(
    floors: Sequence[GenerationIO], dense: Sequence[GenerationIO], key: RuntimeKey
) -> float | None:
    """Bytes that a token of dense must read / bytes that a token of this cell must read."""

    def token_bytes(several: Sequence[GenerationIO]) -> int | None:
        return next(
            (
                one.weight_bytes + one.kv_cache_bytes
                for one in several
                if shape_of(one) == (*key[1:], 1)
            ),
            None,
        )

    mine, reference = token_bytes(floors), token_bytes(dense)
    return reference / mine if mine and reference else None
