"""Speed in the engines that serve models: cells against engines, beside what the bytes allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.record.runtimes import EXACT
from prunebench_report.data.groups import models_with
from prunebench_report.data.runtimes import (
    RuntimeKey,
    Timed,
    bytes_speedup,
    protocol,
    runtimes_by_key,
    tokens_in_words,
)
from prunebench_report.data.speed import shape_of, stored_latencies
from prunebench_report.sections.score_tables import ScoreCell, score_cell
from prunebench_report.text import Facts, clean, number, seconds, shorten, size, times

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench.record.runtimes import RuntimeResult
    from prunebench.record.speed import Latency, Ratio, Summary
    from prunebench_report.data.report_input import ReportInput

_LONGEST_REASON = 160


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model with runtimes, a table of cells against runtimes and shapes."""
    tables = []
    for model, members in models_with(given.detailed, runtimes_by_key):
        columns = {
            key: timed.result
            for record in members
            for key, timed in runtimes_by_key(record).items()
        }
        shapes = list(dict.fromkeys((prompt, new) for _, prompt, new in columns))
        heads = []
        for prompt, new in shapes:
            about = f"prompt {prompt}, {new} new tokens"
            heads += [("the bytes allow", about), ("prunebench", f"its own loop\n{about}")]
            heads += [
                (result.runtime, _about(result, about))
                for key, result in columns.items()
                if key[1:] == (prompt, new)
            ]
        rows = []
        # For each shape: what the bytes allow, our own loop, then the engines.
        for record in members:
            cells: list[ScoreCell] = []
            mine = runtimes_by_key(record)
            for shape in shapes:
                keys = [key for key in columns if key[1:] == shape]
                cells += [_allowed(given, record, keys[0]), _own(record, keys[0])]
                cells += [_cell(mine.get(key)) for key in keys]
            rows.append(
                {
                    "id": record.id,
                    "name": clean(given.names[record.id]),
                    "dense": record.cell.method.name == "dense",
                    "cells": cells,
                }
            )
        tables.append(
            {
                "model": model,
                "mean": False,
                "heads": [{"name": clean(name), "about": clean(about)} for name, about in heads],
                "rows": rows,
                "protocols": [clean(protocol(result, key)) for key, result in columns.items()],
            }
        )
    return tables


def _about(result: RuntimeResult, shape: str) -> str:
    return shape if result.precision in result.runtime else f"{result.precision}\n{shape}"


def facts(record: Record) -> Facts:
    """Every runtime of a cell in words: times, tokens, conversion."""
    found = []
    for key, (result, one) in runtimes_by_key(record).items():
        parts = []
        if result.reason is not None:
            parts.append(f"not available: {result.reason}")
        elif one is not None and one.ttft_s is not None and one.token_s is not None:
            parts.append(f"first token {_time(one.ttft_s)}, then {_time(one.token_s)} a token")
            if one.token_speedup is not None:
                parts.append(f"{_ratio(one.token_speedup)} dense")
            if one.bursts:
                parts.append("tokens come in bursts: means of rounds")
        elif one is not None:
            parts.append(f"not measurable: {one.not_measurable}")
        if one is not None and one.tokens is not None:
            parts.append(tokens_in_words(one.tokens))
        if result.conversion is not None:
            parts.append(
                f"converted in {seconds(result.conversion.seconds)}"
                f" to {size(result.conversion.bytes)}"
            )
        found.append((clean(protocol(result, key)), clean("; ".join(parts))))
    return found


def _allowed(given: ReportInput, record: Record, key: RuntimeKey) -> ScoreCell:
    dense = given.dense_of(record)
    if dense is None:
        return score_cell(times(1.0 if record.cell.method.name == "dense" else None))
    ratio = bytes_speedup(given.floors[record.id], given.floors[dense.id], key)
    if ratio is None and record.audit and dense.audit:
        # Without a bandwidth there is no floor; the weights in memory are nearly what is read.
        ratio = dense.audit.memory_bytes / record.audit.memory_bytes
    return score_cell(times(ratio))


def _own(record: Record, key: RuntimeKey) -> ScoreCell:
    """The harness's own decode loop at the same shape."""
    one: Latency | None = next(
        (latency for latency in stored_latencies(record) if shape_of(latency) == (*key[1:], 1)),
        None,
    )
    if one is None or one.inter_token_s is None:
        return score_cell(note=clean(one.not_measurable) if one and one.not_measurable else None)
    return _speed(one.inter_token_speedup, one.inter_token_s, one.execution)


def _cell(timed: Timed | None) -> ScoreCell:
    if timed is None:
        return score_cell()
    result, one = timed
    if one is None or one.token_s is None:
        reason = result.reason or (one and one.not_measurable) or None
        return score_cell(note=clean(shorten(reason, _LONGEST_REASON)) if reason else None)
    tokens = "" if one.tokens is None else tokens_in_words(one.tokens)
    if one.tokens is not None and not one.tokens.same and result.precision != EXACT:
        tokens += f", as {result.precision} may"
    return _speed(one.token_speedup, one.token_s, tokens)


def _speed(ratio: Ratio | None, step: Summary, about: str) -> ScoreCell:
    """The speed-up over dense; the time itself is below it. Dense has its time alone."""
    token = f"{_time(step)} a token"
    note = f"{token}, {about}" if about else token
    # Dense, or a model that was timed alone.
    if ratio is None:
        return score_cell(_time(step), about or None)
    if ratio.low is None or ratio.high is None:
        return score_cell(times(ratio.estimate), note)
    sure = "better" if ratio.low > 1 else "worse" if ratio.high < 1 else None
    return score_cell(
        times(ratio.estimate), f"{number(ratio.low)} to {number(ratio.high)}; {note}", sure
    )


def _ratio(ratio: Ratio) -> str:
    between = (
        f" ({number(ratio.low)} to {number(ratio.high)})"
        if ratio.low is not None and ratio.high is not None
        else ""
    )
    return f"{times(ratio.estimate)}{between}"


def _time(found: Summary) -> str:
    return seconds(found.median)
