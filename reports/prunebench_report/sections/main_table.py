"""The table of all cells as plain values: grouped columns with units in their heads, deltas against dense in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from prunebench_report.data import seeds
from prunebench_report.data.table import Row
from prunebench_report.sections.tasks import RECOVERY, quality_key
from prunebench_report.text import MISSING, TIMES, delta, fixed, number, times

Unit = Literal["plain", "percent", "share", "time", "bytes", "count", "rate", "ratio", "joules"]


@dataclass(frozen=True)
class Column:
    """``ratio`` names the column that holds the value relative to dense; ``speedup`` the one that holds dense / value."""

    key: str
    head: str
    group: str
    unit: Unit
    meaning: str
    better: Literal[-1, 0, 1] = 0
    ratio: str | None = None
    speedup: str | None = None


COLUMNS = (
    Column("perplexity", "Perplexity", "Quality", "plain", "lower is better", -1),
    Column(
        "recovery_percent", "Recovery", "Quality", "percent", "dense perplexity / perplexity", 1
    ),
    Column("tasks_mean", "Tasks", "Quality", "share", "mean score", 1),
    Column(RECOVERY, "Task recovery", "Quality", "percent", "mean of score / dense", 1),
    Column("inter_token_speedup", "Speed-up", "Speed", "ratio", "per token", 1),
    Column("sparse24_speedup", "2:4 kernels", "Speed", "ratio", "the same model", 1),
    Column(
        "inter_token_p50_s",
        "Between tokens",
        "Speed",
        "time",
        "median",
        -1,
        speedup="inter_token_speedup",
    ),
    Column("ttft_p50_s", "First token", "Speed", "time", "median", -1, speedup="ttft_speedup"),
    Column(
        "tokens_per_s", "Tokens", "Speed", "rate", "generated", 1, speedup="inter_token_speedup"
    ),
    Column("io_utilisation", "I/O floor", "Speed", "share", "of measured", 0),
    Column("joules_per_token", "Energy", "Speed", "joules", "per token", -1, ratio="joules_ratio"),
    Column("memory_bytes", "Weights", "Memory", "bytes", "in memory", -1, ratio="memory_ratio"),
    Column(
        "peak_rss_bytes", "Peak RSS", "Memory", "bytes", "whole process", -1, ratio="peak_rss_ratio"
    ),
    Column("peak_gpu_bytes", "Peak GPU", "Memory", "bytes", "whole process", -1),
    Column("sparsity", "Zeros", "Size", "share", "of prunable weights", 0),
    Column(
        "parameters", "Parameters", "Size", "count", "that remain", -1, ratio="parameters_ratio"
    ),
    Column("disk_bytes", "On disk", "Size", "bytes", "safetensors", -1, ratio="disk_ratio"),
    Column("prune_s", "Pruning", "Cost", "time", "calibration included", -1),
    Column("recover_s", "Retraining", "Cost", "time", "after pruning", -1),
    Column("load_s", "Loading", "Cost", "time", "dense model", -1),
)
_OPTIONAL = {
    "tasks_mean",
    RECOVERY,
    "peak_gpu_bytes",
    "recover_s",
    "joules_per_token",
    "sparse24_speedup",
}

_SCALES: dict[Unit, tuple[tuple[float, str, float], ...]] = {
    # From this value on, the unit, and what a value is multiplied by.
    "time": ((1.0, "s", 1.0), (0.0, "ms", 1e3)),
    "bytes": ((1e10, "GB", 1e-9), (0.0, "MB", 1e-6)),
    "count": ((1e10, "B", 1e-9), (0.0, "M", 1e-6)),
    "share": ((0.0, "%", 100.0),),
    "percent": ((0.0, "%", 1.0),),
    "ratio": ((0.0, TIMES, 1.0),),
    "rate": ((0.0, "/s", 1.0),),
    "joules": ((1.0, "J", 1.0), (0.0, "mJ", 1e3)),
    "plain": ((0.0, "", 1.0),),
}


def matrix(table: Sequence[Row], gate: float) -> dict[str, Any]:
    """Groups, columns and rows for the template; ``table`` may hold rows of cells that were never run."""
    columns = [
        c
        for c in COLUMNS
        if c.key not in _OPTIONAL or any(row.get(c.key) is not None for row in table)
    ]
    scales = [_scale(column, table) for column in columns]
    judged = next((quality_key(row) for row in table if row["status"] == "ok"), "recovery_percent")
    heads = []
    for column, (unit, _, _) in zip(columns, scales, strict=True):
        note = f"gate {100 * gate:g} %" if column.key == judged else column.meaning
        heads.append({"key": column.key, "head": column.head, "unit": unit, "note": note})
    ends = {len(list(columns)) - 1}
    groups: list[dict[str, Any]] = []
    position = 0
    for name, members in groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        groups.append({"name": name, "span": span})
        position += span
        ends.add(position - 1)
    starts = {end + 1 for end in ends} | {0}
    facets = _facets(table)
    return {
        "filters": [
            {"key": key, "label": label, "options": values}
            for key, label, values in facets
            if len(values) > 1
        ],
        "groups": groups,
        "columns": [{**head, "first": index in starts} for index, head in enumerate(heads)],
        "gate": f"{100 * gate:g} %{' mean task' if judged == RECOVERY else ''}",
        "rows": [
            {
                **_row(row, columns, scales, starts),
                "facets": [v.index(_facet(row, k)) for k, _, v in facets if len(v) > 1],
            }
            for row in table
        ],
    }


def _facets(table: Sequence[Row]) -> list[tuple[str, str, list[str]]]:
    """What rows can be picked by: key, label, and the values that there are."""
    return [
        (key, label, list(dict.fromkeys(_facet(row, key) for row in table)))
        for key, label in (
            ("method", "Method"),
            ("model", "Model"),
            ("status", "Status"),
            ("granularity", "Pruned"),
        )
    ]


def _facet(row: Row, key: str) -> str:
    return str(row.get(key) or MISSING)


def _scale(column: Column, table: Sequence[Row]) -> tuple[str, float, int | None]:
    """Unit, factor and decimals for a whole column; None decimals where values are too far apart to share them."""
    values = sorted(abs(row[column.key]) for row in table if row.get(column.key))
    top = values[-1] if values else 0.0
    unit, factor = next(
        (unit, factor) for start, unit, factor in _SCALES[column.unit] if top >= start
    )
    if column.unit == "ratio":
        return unit, factor, 2
    if column.unit in ("share", "percent"):
        return unit, factor, 1
    if not values or values[-1] > 100 * values[0]:
        return unit, factor, None
    middle = values[len(values) // 2] * factor
    return unit, factor, 0 if middle >= 100 else 1 if middle >= 10 else 2


def _row(
    row: Row,
    columns: Sequence[Column],
    scales: Sequence[tuple[str, float, int | None]],
    starts: set[int],
) -> dict[str, Any]:
    ok = row["status"] == "ok"
    is_dense = ok and row["method"] == "dense"
    below = ok and row.get("gate_passed") is False
    tags = []
    if is_dense:
        tags.append("baseline")
    elif row.get("form"):
        tags.append(row["form"])
    if ok and (many := seeds.said(row)):
        tags.append(many)
    if row.get("run"):
        tags.append(f"run {row['run']}")
    cells = []
    for index, (column, scale) in enumerate(zip(columns, scales, strict=True)):
        cell = _cell(row, column, scale, is_dense=is_dense)
        if below and column.key == quality_key(row):
            cell["note"] = "below the gate"
        greyed = below and column.group == "Speed"
        cells.append(
            {**cell, "greyed": greyed, "first": index in starts, "worded": column.unit != "ratio"}
        )
    return {
        "id": row["cell"],
        "members": row.get("members", []),
        "name": row["name"],
        "status": row["status"],
        "dense": is_dense,
        "below": below,
        "tags": tags,
        "cells": cells,
    }


def _cell(
    row: Row, column: Column, scale: tuple[str, float, int | None], *, is_dense: bool
) -> dict[str, Any]:
    value = row.get(column.key)
    if value is None:
        return {"text": MISSING, "sort": None, "note": None, "tone": None}
    _, factor, decimals = scale
    text = number(value * factor) if decimals is None else fixed(value * factor, decimals)
    if (deviation := seeds.spread(row, column.key)) is not None:
        shown = (
            number(deviation * factor, 2)
            if decimals is None
            else fixed(deviation * factor, decimals)
        )
        text += f" ± {shown}"
    note, tone = (None, None) if is_dense else _against(row, column)
    return {"text": text, "sort": f"{value:.6g}", "note": note, "tone": tone}


def _against(row: Row, column: Column) -> tuple[str | None, str | None]:
    """The second line of a cell, and whether it is better or worse than dense (said in words too)."""
    if column.unit == "ratio":
        return _interval(row, column.key)
    ratio: float | None = None
    if column.speedup:
        low, high = row.get(f"{column.speedup}_low"), row.get(f"{column.speedup}_high")
        if low is not None and high is not None and low <= 1 <= high:
            return "no change", None
        speedup = row.get(column.speedup)
        ratio = (1 / speedup if column.better < 0 else speedup) if speedup else None
    elif column.ratio:
        ratio = row.get(column.ratio)
    elif column.key == "perplexity" and row.get("recovery_percent"):
        ratio = 100 / row["recovery_percent"]
    text = delta(ratio)
    if text is None or text.startswith("=") or ratio is None:
        return text, None
    return text, "better" if (ratio - 1) * column.better > 0 else "worse"


def _interval(row: Row, key: str) -> tuple[str | None, str | None]:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None:
        return "not paired", None
    text = f"{times(low)[:-1]} to {times(high)[:-1]}"
    return text, "better" if low > 1 else "worse" if high < 1 else None
