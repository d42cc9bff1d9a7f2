"""Two runs, cell by cell: what B changed against A, and whether the change exceeds its uncertainty.

Cells are paired by everything that decides their outcome, except what differs between the runs as a
whole: a device, a version, a model. Perplexities of the same windows differ if the 95 % interval of
their difference, paired by window, excludes zero; others and scores if |z| > 1.96, speed-ups if
their 95 % intervals do not overlap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench.measure.quality.task_scores import z_score
from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.gate import quality_key
from prunebench_report.data.quality import perplexities
from prunebench_report.data.uncertainty import paired_difference
from prunebench_report.figures.changes import Change, changes
from prunebench_report.sections import header, metrics
from prunebench_report.sections.main_table import COLUMNS, ShownColumn
from prunebench_report.sections.tasks import SIGNIFICANT
from prunebench_report.text import (
    MISSING,
    TIMES,
    delta,
    fixed,
    number,
    percent,
    plus_minus,
    seconds,
    short_label,
    size,
    times,
)

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput
    from prunebench_report.figures.axes import Better
    from prunebench_report.figures.svg import Figure

SAME = "no significant change"

_BY_KEY = {column.key: column for column in COLUMNS}
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
# Columns without uncertainty: any difference is significant.
_COUNTED = {"memory_bytes", "disk_bytes", "sparsity", "parameters"}

# The perplexity is drawn if there is no recovery and no speed-up.
_PLOTS: tuple[tuple[str, str, str, Better], ...] = (
    ("quality", "Quality before and after", "Recovery of dense quality, %", 1),
    ("inter_token_speedup", "Speed before and after", f"Speed-up per token, {TIMES} dense", 1),
    ("perplexity", "Perplexity before and after", "Perplexity", -1),
)
_MOST_DRAWN = 30
# The name under which a row of B says whether its perplexity differs from A's.
_CHANGED = "perplexity_changed"

Compared = dict[str, Any]
"""`values` of A and B, a `note`, a `tone`, and whether it is `significant` (None: unknown)."""


class Pairing(NamedTuple):
    """Which cells of two runs belong together.

    ``differs`` has the name, the value in A and the value in B of what differs between the runs as
    a whole; ``a`` and ``b`` have the cell id for everything else that decides an outcome.
    """

    differs: list[tuple[str, str, str]]
    a: Mapping[str, str]
    b: Mapping[str, str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The cells of A that have a partner in B, with their partners."""
        return [(cell, self.b[key]) for key, cell in self.a.items() if key in self.b]


def comparison(a: ReportInput, b: ReportInput) -> dict[str, Any]:
    """The comparison of two inputs, each of one run."""
    pairing = pair_cells(a.plan.cells, b.plan.cells)
    differs, keys_a, keys_b = pairing
    done = _finished(a, b, pairing.pairs)
    columns = [
        _BY_KEY[key] for key in _KEYS if any(row[key] is not None for pair in done for row in pair)
    ]
    scores, figures = _shared_names(done, _scores), _shared_names(done, _figures)
    engines = _shared_names(done, _runtimes)
    # `cells` of each row are in the order of `heads`: columns, scores, figures, then runtimes.
    rows = [
        {
            "name": a.names[x["cell"]],
            "a": x["cell"],
            "b": y["cell"],
            "cells": [
                *(_compare_column(x, y, column) for column in columns),
                *(_compare_score(x, y, name) for name in scores),
                *(_compare_figure(x, y, name) for name in figures),
                *(_compare_runtime(x, y, name) for name in engines),
            ],
        }
        for x, y in done
    ]
    return {
        "sides": {"A": side(a), "B": side(b)},
        "differs": differs,
        "heads": [column.head for column in columns] + scores + figures + engines,
        "always": [_BY_KEY["perplexity"].head, _BY_KEY["inter_token_speedup"].head],
        "rows": rows,
        "only_a": [a.names[cell] for key, cell in keys_a.items() if key not in keys_b],
        "only_b": [b.names[cell] for key, cell in keys_b.items() if key not in keys_a],
        "without": [
            a.names[x] for x, y in pairing.pairs if x not in a.row_by_id or y not in b.row_by_id
        ],
        "summary": _summary(rows),
    }


def side(given: ReportInput) -> dict[str, Any]:
    """What one of the two runs is: its suite, when and where it ran, and how its cells ended."""
    found = header.section(given)
    return {
        key: found[key] for key in ("title", "suite", "when", "machines", "version", "models")
    } | {"totals": found["totals"]}


def _finished(
    a: ReportInput, b: ReportInput, pairs: Sequence[tuple[str, str]]
) -> list[tuple[Row, Row]]:
    """The rows of the pairs that have a record in both runs."""
    return [
        (
            a.row_by_id[x],
            {**b.row_by_id[y], _CHANGED: _window_by_window(a.record_by_id[x], b.record_by_id[y])},
        )
        for x, y in pairs
        if x in a.row_by_id and y in b.row_by_id
    ]


def _window_by_window(a: Record, b: Record) -> bool | None:
    """Whether the first perplexity surely changed; None if the windows are not known."""
    pair = [*perplexities(a)[:1], *perplexities(b)[:1]]
    if len(pair) < 2 or pair[0].tokens_sha256 != pair[1].tokens_sha256:
        return None
    found = paired_difference(pair[1], pair[0])
    return found and abs(found[0]) > found[1]


def before_and_after(a: ReportInput, b: ReportInput) -> list[Figure]:
    """Plots of the quality and the speed of each cell in both runs."""
    done, names = _finished(a, b, pair_cells(a.plan.cells, b.plan.cells).pairs), a.names
    found: list[Figure] = []
    for key, caption, label, better in _PLOTS:
        rows = [
            Change(short_label(names[x["cell"]]), x[column], y[column], f"#row-{x['cell']}")
            for x, y in done
            for column in [quality_key(x) if key == "quality" else key]
            if x["method"] != "dense" and _positive(x.get(column)) and _positive(y.get(column))
        ]
        # Without dense cells nothing is relative.
        if key == "perplexity" and found:
            continue
        if rows:
            shown = rows[:_MOST_DRAWN]
            figure = changes(caption, shown, label, better=better, log=key == "perplexity")
            left = len(rows) - len(shown)
            notes = (f"{left} more cells are in the table.",) if left else ()
            found.append(replace(figure, notes=notes))
    return found


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [cell["significant"] for row in rows for cell in row["cells"]]
    changed = sum(one is True for one in verdicts)
    judged = sum(one is not None for one in verdicts)
    if not rows:
        return "No cell has a result in both runs."
    if not changed:
        return f"No significant change in {len(rows)} cells: {judged} figures were judged."
    return f"{changed} of {judged} judged figures changed significantly, over {len(rows)} cells."


def pair_cells(a: Sequence[Cell], b: Sequence[Cell]) -> Pairing:
    flat_a, flat_b = ({cell.id: _flatten(cell.identity()) for cell in cells} for cells in (a, b))
    same = flat_a.keys() & flat_b.keys()
    if same and same in (flat_a.keys(), flat_b.keys()):
        # One run holds all cells of the other: nothing differs as a whole.
        return Pairing([], {cell: cell for cell in flat_a}, {cell: cell for cell in flat_b})
    differs = []
    for key in dict.fromkeys(key for flat in (*flat_a.values(), *flat_b.values()) for key in flat):
        in_a, in_b = (
            {flat[key] for flat in side.values() if key in flat} for side in (flat_a, flat_b)
        )
        # One value in all of A and another in all of B: the runs differ in it as a whole.
        if len(in_a) <= 1 and len(in_b) <= 1 and in_a != in_b:
            differs.append((key, next(iter(in_a), "not set"), next(iter(in_b), "not set")))
    ignored = {key for key, _, _ in differs}
    return Pairing(differs, _by_rest(flat_a, ignored), _by_rest(flat_b, ignored))


def _by_rest(cells: Mapping[str, Mapping[str, str]], ignored: set[str]) -> dict[str, str]:
    """The first cell id for each identity without the ``ignored`` keys."""
    found: dict[str, str] = {}
    for cell, flat in cells.items():
        rest = {key: value for key, value in flat.items() if key not in ignored}
        found.setdefault(json.dumps(rest, sort_keys=True), cell)
    return found


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested values by their path: 'method.name', 'perplexity[0].length'; without None."""
    if isinstance(value, Mapping):
        nested = {
            f"{prefix}.{name}" if prefix else str(name): inner for name, inner in value.items()
        }
    elif isinstance(value, list | tuple):
        nested = {f"{prefix}[{index}]": inner for index, inner in enumerate(value)}
    else:
        return {} if value is None else {prefix: str(value)}
    return {
        path: text for name, inner in nested.items() for path, text in _flatten(inner, name).items()
    }


def _compare_column(x: Row, y: Row, column: ShownColumn) -> Compared:
    before, after = x[column.key], y[column.key]
    texts = _text(before, column), _text(after, column)
    if before is None or after is None:
        return _compared(*texts)
    return _judged(texts, before, after, _significant(x, y, column.key), column.better)


def _judged(
    texts: tuple[str, str], before: float, after: float, significant: bool | None, better: int
) -> Compared:
    """Two known values; ``better`` is 1 if more is better, -1 if less is, 0 if neither."""
    tone = None
    if significant and better:
        tone = "better" if (after - before) * better > 0 else "worse"
    change = delta(after / before, "A") if before > 0 and after > 0 else None
    # `delta` says "= A" of what rounds to nothing.
    return _compared(*texts, "same" if change == "= A" else change, significant, tone)


def _significant(x: Row, y: Row, key: str) -> bool | None:
    """Whether two values differ by more than their uncertainty; None if that is unknown."""
    if key in _COUNTED:
        # Exact up to the rounding of shares
        return not math.isclose(x[key], y[key], rel_tol=1e-9)
    if key == "perplexity" and y.get(_CHANGED) is not None:
        return bool(y[_CHANGED])
    if key == "perplexity":
        # Perplexities are compared as mean log-likelihoods, whose standard errors are known.
        if x["nll_nats"] == y["nll_nats"]:
            return False
        z = z_score(y["nll_nats"], y["nll_stderr_nats"], x["nll_nats"], x["nll_stderr_nats"])
        return None if z is None else abs(z) > SIGNIFICANT
    a, b = ((row.get(f"{key}_low"), row.get(f"{key}_high")) for row in (x, y))
    return _apart(a, b)


def _shared_names(
    done: Sequence[tuple[Row, Row]], values: Callable[[Row], Mapping[str, Any]]
) -> list[str]:
    """Names of the tasks or figures that both rows of a pair have."""
    found: dict[str, None] = {}
    for x, y in done:
        found |= dict.fromkeys(name for name in values(x) if name in values(y))
    return list(found)


def _numbered_sets(row: Row, *keys: str) -> list[tuple[Any, ...]]:
    """The values of ``keys`` for each numbered set of columns whose first value is known."""
    found = []
    index = 0
    while numbered(keys[0], index) in row:
        values = tuple(row[numbered(key, index)] for key in keys)
        if values[0] is not None:
            found.append(values)
        index += 1
    return found


def _scores(row: Row) -> dict[str, tuple[float, float | None]]:
    """Score and standard error by task and metric."""
    sets = _numbered_sets(row, "task_value", "task_stderr", "task", "task_metric")
    return {f"{task} {metric}": (value, stderr) for value, stderr, task, metric in sets}


def _compare_score(x: Row, y: Row, name: str) -> Compared:
    before, after = _scores(x).get(name), _scores(y).get(name)
    a, b = (MISSING if one is None else fixed(100 * one[0], 1) for one in (before, after))
    if before is None or after is None:
        return _compared(a, b)
    z = z_score(*after, *before)
    significant = False if before == after else None if z is None else abs(z) > SIGNIFICANT
    return _compared(a, b, plus_minus(100 * (after[0] - before[0])), significant)


def _figures(row: Row) -> dict[str, tuple[float, str]]:
    """Value and unit by the metric's name."""
    sets = _numbered_sets(row, "metric_value", "metric_unit", "metric")
    return {name: (value, unit) for value, unit, name in sets}


def _compare_figure(x: Row, y: Row, name: str) -> Compared:
    """The uncertainty of a metric's figure is unknown, so only equal ones are judged."""
    before, after = _figures(x).get(name), _figures(y).get(name)
    a, b = (MISSING if one is None else metrics.with_unit(*one) for one in (before, after))
    if before is None or after is None:
        return _compared(a, b)
    change = metrics.change(after[0], before[0], after[1])
    return _compared(a, b, change or "same", None if change else False)


def _runtimes(row: Row) -> dict[str, tuple[float, float | None, float | None]]:
    """Speed-up over dense with its interval, by runtime and shape."""
    ends = ("runtime_speedup", "runtime_speedup_low", "runtime_speedup_high")
    sets = _numbered_sets(row, *ends, "runtime", "runtime_protocol")
    # Versions of an engine may differ between the runs; its name and the shape are the same.
    shape = re.compile(r"prompt \d+, \d+ new tokens")
    return {
        f"speed-up in {name}, {found[0]}": (value, low, high)
        for value, low, high, name, protocol in sets
        if (found := shape.search(protocol))
    }


def _compare_runtime(x: Row, y: Row, name: str) -> Compared:
    before, after = _runtimes(x).get(name), _runtimes(y).get(name)
    a, b = (MISSING if one is None else times(one[0]) for one in (before, after))
    if before is None or after is None:
        return _compared(a, b)
    return _judged((a, b), before[0], after[0], _apart(before[1:], after[1:]), better=1)


def _apart(
    a: tuple[float | None, float | None], b: tuple[float | None, float | None]
) -> bool | None:
    """Whether two intervals have no number in common; None if one is not known.

    Stricter than a test of the difference: intervals can overlap although the difference is real.
    """
    (low_a, high_a), (low_b, high_b) = a, b
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return None
    return bool(high_a < low_b or high_b < low_a)


def _compared(
    a: str,
    b: str,
    change: str | None = None,
    significant: bool | None = None,
    tone: str | None = None,
) -> Compared:
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


def _text(value: float | None, column: ShownColumn) -> str:
    if value is None:
        return MISSING
    if column.unit == "count":
        return f"{number(value / 1e6)} M"
    in_unit: dict[str, Callable[[float], str]] = {
        "time": seconds,
        "bytes": size,
        "ratio": times,
        "share": percent,
    }
    return in_unit[column.unit](value) if column.unit in in_unit else number(value, 4)
