"""Where the time goes: time and bytes by part of the model, for a prompt and for a token.

Also what a widely cited analysis claims about generation, checked on the dense model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.measure.speed.dejavu_claims import findings
from prunebench_report.data.groups import models_with
from prunebench_report.figures.path_data import shortest
from prunebench_report.figures.scale import longest_bar
from prunebench_report.text import percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import Record
    from prunebench.record.speed import Breakdown
    from prunebench_report.data.report_input import ReportInput

NAMES = {
    "attention": "Attention",
    "mlp": "MLP",
    "norms": "Norms",
    "head": "Head",
    "rest": "Rest",
    "router": "Router",
    "experts": "Experts",
}
PARTS = tuple(NAMES)
ALWAYS = PARTS[:5]
"""The parts that every model has; the others are those of mixtures of experts."""
_BARS = {"prompt": "prompt_s", "token": "token_s", "bytes": "token_bytes"}
VERDICTS = {True: "holds here", False: "does not hold here", None: "cannot be seen here"}


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model one stacked bar per cell and phase, and the claims."""
    found = []
    for model, members in models_with(given.detailed, _breakdown):
        splits = [(record, split) for record in members if (split := _breakdown(record))]
        longest = {
            bar: longest_bar([_total(split, key) for _, split in splits])
            for bar, key in _BARS.items()
        }
        first_record, first = splits[0]
        found.append(
            {
                "model": model,
                "shape": f"prompt of {first.prompt} tokens, batch {first.batch_size}",
                "rows": [_row(record, split, longest, given) for record, split in splits],
                "claims": _claims(first_record, first, given.floors[first_record.id][:1]),
                "claims_of": given.names[first_record.id],
            }
        )
    return found


def shown(given: ReportInput) -> list[str]:
    """The names of the parts in the order of their colours; without those that no model has."""
    splits = [split for record in given.detailed if (split := _breakdown(record))]
    there = {part.part for split in splits for part in split.parts}
    return [name for part, name in NAMES.items() if part in ALWAYS or part in there]


def _breakdown(record: Record) -> Breakdown | None:
    return record.speed.breakdown if record.speed else None


def _row(
    record: Record, split: Breakdown, longest: Mapping[str, float], given: ReportInput
) -> dict[str, Any]:
    io = next(iter(given.floors[record.id]), None)
    floor = None
    if io is not None and io.utilisation is not None and math.isfinite(io.utilisation):
        share = percent(io.utilisation, 0)
        floor = f"I/O floor {seconds(io.floor_s)} of {seconds(io.measured_s)} a token: {share}"
    return {
        "id": record.id,
        "name": given.names[record.id],
        "dense": record.cell.method.name == "dense",
        **{bar: _bar(split, bar, longest[bar]) for bar in _BARS},
        "io": floor,
    }


def _bar(split: Breakdown, bar: str, longest: float) -> dict[str, Any]:
    """One stacked bar: where each part ends, in per cent of the column's scale; the same in words."""
    key = _BARS[bar]
    total = _total(split, key)
    in_unit = size if bar == "bytes" else seconds
    rects, words, end = [], [], 0.0
    for name in PARTS:
        value = next((float(getattr(part, key)) for part in split.parts if part.part == name), 0.0)
        if value <= 0 or not math.isfinite(value):
            continue
        # A bar beyond the scale ends at its edge.
        end = min(end + 100 * value / longest, 100.0)
        text = f"{NAMES[name]} {percent(value / total, 0)}"
        # A name and its percentage stay on one line.
        words.append(text.replace(" ", "\N{NO-BREAK SPACE}"))
        rects.append({"end": shortest(end, 2), "part": PARTS.index(name)})
    return {
        "rects": rects,
        "total": in_unit(total),
        "cut": total > longest,
        "words": ", ".join(words),
    }


def _total(split: Breakdown, key: str) -> float:
    values = [float(getattr(part, key)) for part in split.parts]
    # Hooks can measure a rest below zero; such a part is not drawn and must not shorten the others.
    return sum(value for value in values if math.isfinite(value) and value > 0)


def _claims(record: Record, split: Breakdown, io: Sequence[GenerationIO]) -> list[dict[str, str]]:
    """The claims checked on this record; none if it is not dense or lacks a figure they need."""
    latency = record.speed.latency[:1] if record.speed else []
    complete = latency and io and {part.part for part in split.parts} >= set(ALWAYS)
    if record.cell.method.name != "dense" or not complete:
        return []
    # The claims are ratios of these times.
    first, between = latency[0].ttft_s, latency[0].inter_token_s
    if first and between and min(split.token_s, between.median, first.median) <= 0:
        return []
    return [
        {"claim": one.claim, "holds": VERDICTS[one.holds], "evidence": one.evidence}
        for one in findings(split, latency[0], io[0])
    ]
