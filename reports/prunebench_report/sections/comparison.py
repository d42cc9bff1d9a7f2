"""Two runs, cell by cell: what B changed against A, and whether that is more than its uncertainty.

Cells are paired by all that decides their outcome, apart from what differs between the runs as a whole: a device, a
version, a model. Perplexities and scores differ where |z| > 1.96, speed-ups where their intervals do not meet.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.measure.quality.task_scores import z_score
from prunebench_report.data import table as frames
from prunebench_report.sections import metrics, tasks
from prunebench_report.sections.main_table import COLUMNS, Column
from prunebench_report.text import (
    MISSING,
    delta,
    fixed,
    number,
    percent,
    seconds,
    signs,
    size,
    times,
)

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench_report.data.load_runs import ReportInput

SAME = "no significant change"
_KEYS = (
    "perplexity",
    "inter_token_speedup",
    "inter_token_p50_s",
    "ttft_p50_s",
    "memory_bytes",
    "disk_bytes",
    "sparsity",
    "parameters",
    "prune_s",
)
_EXACT = {"memory_bytes", "disk_bytes", "sparsity", "parameters"}


def comparison(a: ReportInput, b: ReportInput) -> dict[str, Any]:
    """The view-model of a comparison; ``a`` and ``b`` are of one run each."""
    differs, keys_a, keys_b = _pairing(a.plan.cells, b.plan.cells)
    rows_a = {row["cell"]: row for row in frames.plain(a.records, a.plan.gate)}
    rows_b = {row["cell"]: row for row in frames.plain(b.records, b.plan.gate)}
    named_a, named_b = frames.names(a.plan.cells), frames.names(b.plan.cells)
    pairs = [(cell, keys_b[key]) for key, cell in keys_a.items() if key in keys_b]
    done = [(rows_a[x], rows_b[y]) for x, y in pairs if x in rows_a and y in rows_b]
    kinds = [
        _BY_KEY[key]
        for key in _KEYS
        if any(row.get(key) is not None for pair in done for row in pair)
    ]
    scores, further = _common(done, _scores), _common(done, _further)
    rows = [
        {
            "name": named_a[x["cell"]],
            "a": x["cell"],
            "b": y["cell"],
            "cells": [_cell(x, y, kind) for kind in kinds]
            + [_score(x, y, task) for task in scores]
            + [_figure(x, y, name) for name in further],
        }
        for x, y in done
    ]
    verdicts = [cell["significant"] for row in rows for cell in row["cells"]]
    changed = sum(one is True for one in verdicts)
    judged = sum(one is not None for one in verdicts)
    return {
        "differs": differs,
        "heads": [kind.head for kind in kinds] + scores + further,
        "always": [_BY_KEY["perplexity"].head, _BY_KEY["inter_token_speedup"].head],
        "rows": rows,
        "only_a": [named_a[cell] for key, cell in keys_a.items() if key not in keys_b],
        "only_b": [named_b[cell] for key, cell in keys_b.items() if key not in keys_a],
        "without": [named_a[x] for x, y in pairs if x not in rows_a or y not in rows_b],
        "summary": _said(len(rows), changed, judged),
    }


def _said(cells: int, changed: int, judged: int) -> str:
    if not cells:
        return "No cell stands in both runs with a result."
    if not changed:
        return f"No significant change in {cells} cells: {judged} figures were judged."
    return f"{changed} of {judged} figures that can be judged changed significantly, over {cells} cells."


def _pairing(
    a: Sequence[Cell], b: Sequence[Cell]
) -> tuple[list[tuple[str, str, str]], dict[str, str], dict[str, str]]:
    """What differs between the runs as a whole, and for each run the ids by all the rest."""
    flat_a, flat_b = ({cell.id: _flat(cell.identity()) for cell in cells} for cells in (a, b))
    if flat_a.keys() & flat_b.keys():
        same = flat_a.keys() & flat_b.keys()
        if same == flat_a.keys() or same == flat_b.keys():
            return [], {cell: cell for cell in flat_a}, {cell: cell for cell in flat_b}
    differs = []
    for key in dict.fromkeys(key for flat in (*flat_a.values(), *flat_b.values()) for key in flat):
        in_a, in_b = (
            {flat[key] for flat in side.values() if key in flat} for side in (flat_a, flat_b)
        )
        if len(in_a) <= 1 and len(in_b) <= 1 and in_a != in_b:
            differs.append((key, _first(in_a), _first(in_b)))
    apart = {key for key, _, _ in differs}

    def keyed(side: Mapping[str, dict[str, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for cell, flat in side.items():
            rest = json.dumps(
                {key: value for key, value in flat.items() if key not in apart}, sort_keys=True
            )
            found.setdefault(rest, cell)
        return found

    return differs, keyed(flat_a), keyed(flat_b)


def _first(values: set[str]) -> str:
    return next(iter(values), "not set")


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {
            key: text
            for name, inner in value.items()
            for key, text in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if isinstance(value, list | tuple):
        return {
            key: text
            for index, inner in enumerate(value)
            for key, text in _flat(inner, f"{prefix}[{index}]").items()
        }
    return {} if value is None else {prefix: str(value)}


def _cell(x: frames.Row, y: frames.Row, metric: Column) -> dict[str, Any]:
    before, after = x.get(metric.key), y.get(metric.key)
    if before is None or after is None:
        return _shown(_text(before, metric), _text(after, metric), None, None, None)
    significant = _significant(x, y, metric, before, after)
    tone = None
    if significant and metric.better:
        tone = "better" if (after - before) * metric.better > 0 else "worse"
    change = delta(after / before) if before > 0 and after > 0 else None
    change = None if change is None else change.replace("= dense", "same").replace("dense", "A")
    return _shown(_text(before, metric), _text(after, metric), change, significant, tone)


def _significant(
    x: frames.Row, y: frames.Row, metric: Column, before: float, after: float
) -> bool | None:
    """Whether a difference is one; None where nothing says how uncertain it is."""
    if metric.key in _EXACT:
        return not math.isclose(before, after, rel_tol=1e-9)
    if metric.key == "perplexity":
        z = z_score(
            y.get("nll_nats"), y.get("nll_stderr_nats"), x.get("nll_nats"), x.get("nll_stderr_nats")
        )
        if x.get("nll_nats") == y.get("nll_nats"):
            return False
        return None if z is None else abs(z) > tasks.SIGNIFICANT
    low_a, high_a, low_b, high_b = (
        row.get(f"{metric.key}_{end}") for row in (x, y) for end in ("low", "high")
    )
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return None
    return bool(high_a < low_b or high_b < low_a)


def _common(
    done: Sequence[tuple[frames.Row, frames.Row]],
    figures: Callable[[frames.Row], Mapping[str, Any]],
) -> list[str]:
    """Names of the tasks or metrics that stand in both rows of a pair."""
    found: dict[str, None] = {}
    for x, y in done:
        found |= dict.fromkeys(name for name in figures(x) if name in figures(y))
    return list(found)


def _scores(row: frames.Row) -> dict[str, tuple[float, float | None]]:
    """Score and standard error by task and metric."""
    found = {}
    for index in range(row.get("tasks_run") or 0):
        suffix = f"_{index + 1}" if index else ""
        if row.get(f"task_value{suffix}") is not None:
            name = f"{row[f'task{suffix}']} {row[f'task_metric{suffix}']}"
            found[name] = (row[f"task_value{suffix}"], row.get(f"task_stderr{suffix}"))
    return found


def _score(x: frames.Row, y: frames.Row, task: str) -> dict[str, Any]:
    before, after = _scores(x).get(task), _scores(y).get(task)
    if before is None or after is None:
        shown = [MISSING if one is None else fixed(100 * one[0], 1) for one in (before, after)]
        return _shown(shown[0], shown[1], None, None, None)
    z = z_score(*after, *before)
    significant = False if before == after else None if z is None else abs(z) > tasks.SIGNIFICANT
    change = signs(f"{100 * (after[0] - before[0]):+.1f}")
    return _shown(fixed(100 * before[0], 1), fixed(100 * after[0], 1), change, significant, None)


def _further(row: frames.Row) -> dict[str, tuple[float, str, bool]]:
    """Value, unit and whether higher is better, by the metric's name."""
    found = {}
    for suffix in (
        key.removeprefix("metric_value") for key in row if re.fullmatch(r"metric_value(_\d+)?", key)
    ):
        if row[f"metric_value{suffix}"] is not None:
            kept = (row[f"metric_{key}{suffix}"] for key in ("value", "unit", "higher_is_better"))
            found[row[f"metric{suffix}"]] = tuple(kept)
    return found


def _figure(x: frames.Row, y: frames.Row, name: str) -> dict[str, Any]:
    """A metric's figure: nothing says how uncertain it is, so that only an equal one is judged."""
    before, after = _further(x).get(name), _further(y).get(name)
    texts = [MISSING if one is None else metrics.shown(one[0], one[1]) for one in (before, after)]
    if before is None or after is None:
        return _shown(texts[0], texts[1], None, None, None)
    change = metrics.change(after[0], before[0], after[1])
    return _shown(texts[0], texts[1], change or "same", None if change else False, None)


def _shown(
    a: str, b: str, change: str | None, significant: bool | None, tone: str | None
) -> dict[str, Any]:
    if significant is False:
        note = SAME if change else MISSING
    else:
        note = change or MISSING
        if tone:
            note += f", {tone}"
        elif significant is None and change:
            note += ", not judged"
    values = a if a == b else f"{a} to {b}"
    return {"values": values, "note": note, "significant": significant, "tone": tone}


def _text(value: float | None, metric: Column) -> str:
    if value is None:
        return MISSING
    told = {"time": seconds, "bytes": size, "ratio": times, "share": percent}.get(metric.unit)
    if told is not None:
        return str(told(value))  # type: ignore[operator]
    return f"{number(value / 1e6)} M" if metric.unit == "count" else number(value, 4)


_BY_KEY = {column.key: column for column in COLUMNS}
