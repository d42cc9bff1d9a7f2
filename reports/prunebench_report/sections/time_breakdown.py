"""Where the time goes: attention, MLP, norms, head and the rest of a prompt and of a token, beside the bytes they read.

Bars for the template to draw, and what a widely cited analysis says of generation, judged on the dense model here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.measure.speed.dejavu_claims import findings
from prunebench_report.data.groups import models_with
from prunebench_report.text import number, percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench.record.speed import Breakdown

WIDTH = 400
PARTS = ("attention", "mlp", "norms", "head", "rest")
NAMES = {"attention": "Attention", "mlp": "MLP", "norms": "Norms", "head": "Head", "rest": "Rest"}
_KINDS = {"prompt": "prompt_s", "token": "token_s", "bytes": "token_bytes"}
VERDICTS = {True: "holds here", False: "does not hold here", None: "cannot be seen here"}


def columns(record: Record) -> dict[str, Any]:
    """The split as columns of the one table; empty where there is none."""
    split = record.speed.breakdown if record.speed else None
    if split is None:
        return {}
    return {
        f"{part.part}_{kind}": getattr(part, kind)
        for part in split.parts
        for kind in _KINDS.values()
    }


def section(records: Sequence[Record], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each model a bar chart a phase and the claims; ``named`` has each cell's name. Empty without breakdowns."""
    found = []
    for model, members in models_with(
        records, lambda record: record.speed and record.speed.breakdown
    ):
        splits = [
            (record, record.speed.breakdown)
            for record in members
            if record.speed and record.speed.breakdown
        ]
        longest = {
            kind: max(_total(split, key) for _, split in splits) for kind, key in _KINDS.items()
        }
        first = splits[0][1]
        found.append(
            {
                "model": model,
                "shape": f"prompt of {first.prompt} tokens, batch {first.batch_size}",
                "rows": [
                    _row(record, split, longest, named[record.id]) for record, split in splits
                ],
                "claims": _claims(members[0]),
                "claims_of": named[members[0].id],
            }
        )
    return found


def _row(
    record: Record, split: Breakdown, longest: Mapping[str, float], name: str
) -> dict[str, Any]:
    io = record.io.generation[0] if record.io and record.io.generation else None
    told = None
    if io is not None and math.isfinite(io.utilisation):
        told = f"I/O floor {seconds(io.floor_s)} of {seconds(io.measured_s)} a token: {percent(io.utilisation, 0)}"
    return {
        "id": record.id,
        "name": name,
        "dense": record.cell.method.name == "dense",
        "prompt": _bar(split, "prompt", longest["prompt"]),
        "token": _bar(split, "token", longest["token"]),
        "bytes": _bar(split, "bytes", longest["bytes"]),
        "io": told,
    }


def _bar(split: Breakdown, kind: str, longest: float) -> dict[str, Any]:
    """One stacked bar on the common scale of its column: rects by part, and the same in words."""
    key = _KINDS[kind]
    total = _total(split, key)
    told = size if kind == "bytes" else seconds
    rects, words, x = [], [], 0.0
    for name in PARTS:
        value = next((float(getattr(part, key)) for part in split.parts if part.part == name), 0.0)
        if value <= 0 or not math.isfinite(value):
            continue
        width = WIDTH * value / longest
        words.append(
            f"{NAMES[name]} {percent(value / total, 0)}".replace(" ", "\N{NO-BREAK SPACE}")
        )
        rects.append({"x": f"{x:.1f}", "width": f"{width:.1f}", "part": PARTS.index(name)})
        x += width
    return {
        "rects": rects,
        "total": told(total),
        "title": f"{told(total)}: {', '.join(words)}",
        "words": ", ".join(words),
    }


def _total(split: Breakdown, key: str) -> float:
    return sum(
        value
        for part in split.parts
        if math.isfinite(value := float(getattr(part, key))) and value > 0
    )


def _claims(record: Record) -> list[dict[str, str]]:
    """What the analysis claims, held against the dense model; none where the record is not of a dense one."""
    split = record.speed.breakdown if record.speed else None
    if (
        record.cell.method.name != "dense"
        or split is None
        or record.speed is None
        or not record.speed.latency
    ):
        return []
    if (
        record.io is None
        or not record.io.generation
        or {part.part for part in split.parts} < set(PARTS)
    ):
        return []
    latency, io = record.speed.latency[0], record.io.generation[0]
    if min(split.token_s, latency.inter_token_s.median, latency.ttft_s.median) <= 0:
        return []
    return [
        {"claim": one.claim, "holds": VERDICTS[one.holds], "evidence": one.evidence}
        for one in findings(split, latency, io)
    ]


def dram(record: Record) -> list[tuple[str, str]]:
    """The GPU memory's own traffic in the generation phase, where its counters were read."""
    found = record.speed.dram if record.speed else None
    if found is None:
        return []
    if found.utilisation is None:
        return [("DRAM traffic", f"not available: {found.reason or 'no counter'}")]
    peak = (
        "" if found.peak_bytes_per_s is None else f" of {number(found.peak_bytes_per_s / 1e9)} GB/s"
    )
    return [
        (
            "DRAM traffic",
            f"{percent(found.utilisation, 0)}{peak}, mean over {seconds(found.seconds)} (NVML GPM)",
        )
    ]
