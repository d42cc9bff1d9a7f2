"""The table of all cells: grouped columns with units, and differences from dense in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prunebench_report.data.columns import Row
from prunebench_report.data.gate import (
    CANNOT_TELL,
    FAILED,
    PERPLEXITY_RECOVERY,
    TASKS_RECOVERY,
    interval_of,
    quality_key,
)
from prunebench_report.data.seeds import seed_count, seed_deviation
from prunebench_report.data.tasks import TASKS_FLIPS
from prunebench_report.text import MISSING, TIMES, delta, fixed, number, times

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

Unit = Literal["plain", "percent", "share", "time", "bytes", "count", "rate", "ratio", "joules"]


@dataclass(frozen=True)
class ShownColumn:
    """One column of the table.

    ``ratio`` names the data column with value / dense, ``speedup`` the one with dense / value.
    ``better`` is 1 if higher values are better, -1 if lower ones are, 0 if neither is. An
    ``optional`` column is left out if no cell has a value.
    """

    key: str
    head: str
    group: str
    unit: Unit
    meaning: str
    better: Literal[-1, 0, 1] = 0
    ratio: str | None = None
    speedup: str | None = None
    optional: bool = False


class Scale(NamedTuple):
    """How the values of a column are written; without ``decimals``, by significant digits."""

    unit: str
    factor: float
    decimals: int | None


COLUMNS = (
    ShownColumn("perplexity", "Perplexity", "Quality", "plain", "lower is better", -1),
    ShownColumn(
        PERPLEXITY_RECOVERY, "Recovery", "Quality", "percent", "dense perplexity / perplexity", 1
    ),
    ShownColumn("tasks_mean", "Tasks", "Quality", "share", "mean score", 1, optional=True),
    ShownColumn(
        TASKS_RECOVERY,
        "Task recovery",
        "Quality",
        "percent",
        "mean of score / dense",
        1,
        optional=True,
    ),
    ShownColumn(
        TASKS_FLIPS, "Flips", "Quality", "percent", "other answers than dense", -1, optional=True
    ),
    ShownColumn("inter_token_speedup", "Speed-up", "Speed", "ratio", "per token", 1),
    ShownColumn(
        "sparse24_speedup", "2:4 kernels", "Speed", "ratio", "the same model", 1, optional=True
    ),
    ShownColumn(
        "inter_token_p50_s",
        "Inter-token latency",
        "Speed",
        "time",
        "median",
        -1,
        speedup="inter_token_speedup",
    ),
    ShownColumn("ttft_p50_s", "TTFT", "Speed", "time", "median", -1, speedup="ttft_speedup"),
    ShownColumn(
        "tokens_per_s",
        "Throughput",
        "Speed",
        "rate",
        "generation",
        1,
        speedup="inter_token_speedup",
    ),
    ShownColumn("io_utilisation", "I/O floor", "Speed", "share", "of measured"),
    ShownColumn(
        "joules_per_token",
        "Energy",
        "Speed",
        "joules",
        "per token",
        -1,
        ratio="joules_ratio",
        optional=True,
    ),
    ShownColumn(
        "memory_bytes", "Weights", "Memory", "bytes", "in memory", -1, ratio="memory_ratio"
    ),
    ShownColumn(
        "peak_rss_bytes", "Peak RSS", "Memory", "bytes", "whole process", -1, ratio="peak_rss_ratio"
    ),
    ShownColumn(
        "peak_gpu_bytes", "Peak GPU", "Memory", "bytes", "whole process", -1, optional=True
    ),
    ShownColumn("sparsity", "Zeros", "Size", "share", "of prunable weights"),
    ShownColumn(
        "parameters", "Parameters", "Size", "count", "remaining", -1, ratio="parameters_ratio"
    ),
    ShownColumn("disk_bytes", "On disk", "Size", "bytes", "safetensors", -1, ratio="disk_ratio"),
    ShownColumn("prune_s", "Pruning", "Cost", "time", "calibration included", -1),
    ShownColumn("recover_s", "Retraining", "Cost", "time", "after pruning", -1, optional=True),
    ShownColumn("load_s", "Loading", "Cost", "time", "dense model", -1),
)

_SCALES: dict[Unit, tuple[tuple[float, str, float], ...]] = {
    # If the largest value reaches the first number: the unit, and the factor to it.
    "time": ((1.0, "s", 1.0), (0.0, "ms", 1e3)),
    "bytes": ((1e10, "GB", 1e-9), (0.0, "MB", 1e-6)),
    "count": ((1e10, "B", 1e-9), (0.0, "M", 1e-6)),
    "share": ((0.0, "%", 100.0),),
    "percent": ((0.0, "%", 1.0),),
    "ratio": ((0.0, TIMES, 1.0),),
    "rate": ((0.0, "tokens/s", 1.0),),
    "joules": ((1.0, "J", 1.0), (0.0, "mJ", 1e3)),
    "plain": ((0.0, "", 1.0),),
}

_AT_THE_GATE = {FAILED: "below the gate", CANNOT_TELL: "at the gate, cannot tell"}
_RECOVERIES = (PERPLEXITY_RECOVERY, TASKS_RECOVERY)

_FACETS = (
    ("method", "Method"),
    ("model", "Model"),
    ("status", "Status"),
    ("granularity", "Pruned"),
)


def section(given: ReportInput) -> dict[str, Any]:
    """One row for each cell of the plan, seeds pooled."""
    return _linked(grid(given.rows, given.gate), given)


def seed_section(given: ReportInput) -> dict[str, Any] | None:
    """One row for each seed of the cells that `section` pools; None if it pools none."""
    pooled = {cell for row in given.rows for cell in row.get("members", ())}
    if not pooled:
        return None
    return _linked(grid([row for row in given.cells if row["cell"] in pooled], given.gate), given)


def _linked(table: dict[str, Any], given: ReportInput) -> dict[str, Any]:
    """The table with what each row's name links to: its card, or the row of its first seed."""
    cards = {record.id for record in given.detailed}
    for row in table["rows"]:
        if row["members"]:
            row["link"] = f"#row-{row['members'][0]}"
        else:
            row["link"] = f"#cell-{row['id']}" if row["id"] in cards else None
    return table


def grid(rows: Sequence[Row], gate: float) -> dict[str, Any]:
    """Groups, columns and rows; ``rows`` may contain cells that were never run."""
    columns = [c for c in COLUMNS if not c.optional or any(r.get(c.key) is not None for r in rows)]
    scales = [_scale(column, rows) for column in columns]
    # Cells of a suite have the same tasks, so the first result says what the gate judges.
    judged = next((quality_key(row) for row in rows if row["status"] == "ok"), PERPLEXITY_RECOVERY)
    groups = [
        {"name": name, "span": len(list(members))}
        for name, members in groupby(columns, key=lambda column: column.group)
    ]
    # Index -1 is the last column: its group differs from the first one's, so 0 is a start too.
    starts = {index for index, c in enumerate(columns) if c.group != columns[index - 1].group}
    facets = [facet for facet in _facets(rows) if len(facet["options"]) > 1]
    shown = []
    for row in rows:
        # Indices instead of names: a thousand rows would repeat them.
        picks = [facet["options"].index(_facet(row, facet["key"])) for facet in facets]
        shown.append({**_row(row, columns, scales, starts), "facets": picks})
    return {
        "filters": facets,
        "groups": groups,
        "columns": [
            {
                "key": column.key,
                "head": column.head,
                "unit": scale.unit,
                "note": f"gate {100 * gate:g} %" if column.key == judged else column.meaning,
                "judged": column.key == judged,
                "first": index in starts,
            }
            for index, (column, scale) in enumerate(zip(columns, scales, strict=True))
        ],
        "gate": f"{100 * gate:g} %{' mean task' if judged == TASKS_RECOVERY else ''}",
        "rows": shown,
    }


def _facets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What rows can be filtered by, with the values that occur."""
    return [
        {"key": key, "label": label, "options": list(dict.fromkeys(_facet(r, key) for r in rows))}
        for key, label in _FACETS
    ]


def _facet(row: Row, key: str) -> str:
    return str(row.get(key) or MISSING)


def _scale(column: ShownColumn, rows: Sequence[Row]) -> Scale:
    """One unit and, unless the values lie too far apart, one number of decimals for a column."""
    values = sorted(abs(row[column.key]) for row in rows if row.get(column.key))
    top = values[-1] if values else 0.0
    unit, factor = next(
        (unit, factor) for start, unit, factor in _SCALES[column.unit] if top >= start
    )
    if column.unit == "ratio":
        return Scale(unit, factor, 2)
    if column.unit in ("share", "percent"):
        return Scale(unit, factor, 1)
    # 0.01 and 18,234 with the same decimals would hide one of them.
    if not values or values[-1] > 100 * values[0]:
        return Scale(unit, factor, None)
    middle = values[len(values) // 2] * factor
    return Scale(unit, factor, 0 if middle >= 100 else 1 if middle >= 10 else 2)


def _row(
    row: Row, columns: Sequence[ShownColumn], scales: Sequence[Scale], starts: set[int]
) -> dict[str, Any]:
    ok = row["status"] == "ok"
    dense = ok and row["method"] == "dense"
    verdict = row["gate_verdict"] if ok else None
    below = verdict == FAILED
    cells = []
    for index, (column, scale) in enumerate(zip(columns, scales, strict=True)):
        cell = _cell(row, column, scale, dense=dense)
        if verdict in _AT_THE_GATE and column.key == quality_key(row):
            cell |= {"also": _AT_THE_GATE[verdict], "below": below, "unsure": not below}
        # A fast model that answers nonsense is of no use.
        cell |= {"greyed": below and column.group == "Speed", "first": index in starts}
        cells.append(cell)
    return {
        "id": row["cell"],
        "members": row.get("members", []),
        "name": row["name"],
        "status": row["status"],
        "dense": dense,
        "tags": _tags(row, dense=dense),
        "cells": cells,
    }


def _tags(row: Row, *, dense: bool) -> list[str]:
    tags = []
    if dense:
        tags.append("baseline")
    elif row.get("form"):
        tags.append(row["form"])
    if row["status"] == "ok" and (seeds := seed_count(row)):
        tags.append(seeds)
    if row.get("run"):
        tags.append(f"run {row['run']}")
    return tags


def _cell(row: Row, column: ShownColumn, scale: Scale, *, dense: bool) -> dict[str, Any]:
    """`text`, the `note` below it with its `tone`, and what `also` stands below that.

    `interval` says that the note is the interval of a speed-up.
    """
    value = row.get(column.key)
    cell: dict[str, Any] = {
        "text": MISSING,
        "sort": None,
        "note": None,
        "tone": None,
        "also": None,
        "interval": False,
        "below": False,
        "unsure": False,
        "worded": column.unit != "ratio",
    }
    if value is None:
        return cell
    # For the page's script; six digits order the rows as the full number would.
    cell["sort"] = f"{value:.6g}"
    cell["text"] = _text(value, scale)
    if (deviation := seed_deviation(row, column.key)) is not None:
        cell["text"] += f" ± {_text(deviation, scale, digits=2)}"
    # The error of a mean of scores is its own, so dense has one too.
    if column.key == "tasks_mean" and (error := row.get("tasks_mean_stderr")) is not None:
        cell["note"] = f"error ± {_text(error, scale)}"
    elif dense:
        return cell
    elif column.unit == "ratio":
        cell |= _interval(row, column.key)
    elif column.key in _RECOVERIES:
        cell |= _error(row, column.key, scale)
    else:
        cell |= _against_dense(row, column)
        # Times of other rows are from other minutes: this one alternated with the cell's rounds.
        paired = row.get(f"dense_{column.key}")
        cell["also"] = None if paired is None else f"dense {_text(paired, scale)}"
    return cell


def _error(row: Row, key: str, scale: Scale) -> dict[str, Any]:
    """The 95 % interval of a recovery as a note; empty if it is not known."""
    found = interval_of(row, key)
    return {"note": " to ".join(_text(end, scale) for end in found)} if found else {}


def _text(value: float, scale: Scale, digits: int = 3) -> str:
    if scale.decimals is None:
        return number(value * scale.factor, digits)
    return fixed(value * scale.factor, scale.decimals)


def _interval(row: Row, key: str) -> dict[str, Any]:
    """The interval of a speed-up as a note; better or worse if it does not contain 1."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    if low is None or high is None:
        return {"note": "not paired"}
    # Without the multiplication sign, which the head of the column has.
    text = f"{times(low)[:-1]} to {times(high)[:-1]}"
    tone = "better" if low > 1 else "worse" if high < 1 else None
    return {"note": text, "tone": tone, "interval": True}


def _against_dense(row: Row, column: ShownColumn) -> dict[str, Any]:
    """The difference from dense as a note, and whether it is better or worse."""
    ratio: float | None = None
    if column.speedup:
        low, high = row[f"{column.speedup}_low"], row[f"{column.speedup}_high"]
        if low is not None and high is not None and low <= 1 <= high:
            return {"note": "no change"}
        speedup = row[column.speedup]
        # A speed-up is dense / value for times, and value / dense for rates.
        ratio = (1 / speedup if column.better < 0 else speedup) if speedup else None
    elif column.ratio:
        ratio = row[column.ratio]
    elif column.key == "perplexity" and row[PERPLEXITY_RECOVERY]:
        ratio = 100 / row[PERPLEXITY_RECOVERY]
    text = delta(ratio)
    if text is None or text.startswith("=") or ratio is None:
        return {"note": text}
    kept = interval_of(row, PERPLEXITY_RECOVERY) if column.key == "perplexity" else None
    if kept and kept[0] <= 100 <= kept[1]:
        # Window by window, the model may be as good as dense.
        return {"note": f"{text}, within error"}
    return {"note": text, "tone": "better" if (ratio - 1) * column.better > 0 else "worse"}
