"""Cells that differ only in their seed as one row: mean, sample standard deviation and count.

The mean of a latency is the mean of the cells' medians; samples of different cells are not pooled.
The ends of a speed-up's interval are averaged, because they say how well each cell was timed. The
interval of a perplexity, which the seed decides, becomes mean - deviation to mean + deviation; that
of a recovery is widened by the deviation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from prunebench_report.data.claims import BOUND, NEEDED
from prunebench_report.data.columns import Row, kind_of
from prunebench_report.data.gate import (
    GENERATION_RECOVERY,
    PERPLEXITY_RECOVERY,
    TASKS_RECOVERY,
    gate_columns,
)
from prunebench_report.data.names import unique_names

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell

_INTERVAL_END = re.compile(r"_(low|high)(?=_\d+$|$)")
_PERPLEXITY = re.compile(r"perplexity(_\d+)?")
_RECOVERY = re.compile(rf"({PERPLEXITY_RECOVERY}|{TASKS_RECOVERY}|{GENERATION_RECOVERY})(_\d+)?")
# Relative deviation that only rounding explains.
_ROUNDING = 1e-9


def seed_groups(cells: Sequence[Cell]) -> list[list[str]]:
    """Groups of ids of cells that differ only in their seed, ordered by the first of each."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        identity = {key: value for key, value in cell.identity().items() if key != "seed"}
        found.setdefault(json.dumps(identity, sort_keys=True), []).append(cell.id)
    return list(found.values())


def pool_seeds(
    rows: Sequence[Row],
    cells: Sequence[Cell],
    gate: float,
    generation_gate: float | None = None,
    runs: Mapping[str, str] | None = None,
) -> list[Row]:
    """``rows`` with one row for each group of seeds, at the place of the group's first cell.

    The row of several cells has the id of the first one with '-seeds' appended, their ids as
    `members`, the number of those with a result as `seeds_done` and, for each number KEY, its
    sample standard deviation as `KEY_sd`. ``gate`` is the share of dense quality to keep, e.g.
    0.95. ``runs`` has the run of each cell id if there are several.
    """
    by_id = {row["cell"]: row for row in rows}
    groups = [group for group in seed_groups(cells) if group[0] in by_id]
    # Named by one cell each, so that names do not contain seeds.
    firsts = {group[0] for group in groups}
    together = {group[0]: _runs_of(group, runs) for group in groups} if runs else None
    named = unique_names([cell for cell in cells if cell.id in firsts], together)
    found = {}
    for group in groups:
        members = [by_id[cell] for cell in group if cell in by_id]
        found[group[0]] = (
            members[0]
            if len(members) == 1
            else _pool(members, named[group[0]], gate, generation_gate)
        )
    return [found[row["cell"]] for row in rows if row["cell"] in found]


def _runs_of(group: Sequence[str], runs: Mapping[str, str]) -> str:
    """'a', or 'a + b' if the seeds are from two runs."""
    return " + ".join(dict.fromkeys(runs[cell] for cell in group if cell in runs))


def _pool(members: Sequence[Row], name: str, gate: float, generation_gate: float | None) -> Row:
    done = [row for row in members if row["status"] == "ok"]
    # A cell that was never run has neither numbers nor an error: prefer one that has.
    first = (done or [row for row in members if "error_phase" in row] or members)[0]
    row = {
        **first,
        "cell": f"{members[0]['cell']}-seeds",
        "name": name,
        "seed": None,
        "members": [member["cell"] for member in members],
        "seeds_done": len(done),
    }
    if len(done) > 1:
        for key in first:
            row |= _pool_column(key, [member[key] for member in done])
        _widen_intervals(row)
        _lowest_bound(row, done)
        row |= gate_columns(row, gate, generation_gate)
    return row


def _pool_column(key: str, values: Sequence[Any]) -> Row:
    """One column of several cells: mean and deviation of numbers, otherwise what all agree on."""
    if key in {"cell", "name", "seed", "status"}:
        return {}
    if key == "run":
        return {key: " + ".join(dict.fromkeys(values))}
    if kind_of(key) not in {"integer", "real"}:
        same = all(value == values[0] for value in values)
        return {key: values[0] if same else None}
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return {key: None}  # a mean over some of the seeds would be biased towards those that work
    if all(value == known[0] for value in known):
        return {key: known[0], f"{key}_sd": 0.0}
    # stdev divides by n - 1: the seeds are a sample.
    return {key: fmean(known), f"{key}_sd": stdev(known)}


def _widen_intervals(row: Row) -> None:
    """Let the intervals of quality say how much the seeds differ.

    That of a perplexity becomes mean - deviation to mean + deviation. A recovery's keeps the error
    over windows or questions, which all seeds share, and adds the deviation to it.
    """
    for end in [key for key in row if _INTERVAL_END.search(key)]:
        key = _INTERVAL_END.sub("", end)
        deviation, mean = row.get(f"{key}_sd"), row.get(key)
        if deviation is None or mean is None:
            continue
        sign = -1 if "_low" in end else 1
        if _PERPLEXITY.fullmatch(key):
            row[end] = mean + sign * deviation
        elif _RECOVERY.fullmatch(key) and row[end] is not None:
            row[end] = mean + sign * math.hypot(row[end] - mean, deviation)


def _lowest_bound(row: Row, members: Sequence[Row]) -> None:
    """The bound of several seeds is that of the worst: their mean lies above it."""
    bounds = [member[BOUND] for member in members if member.get(BOUND) is not None]
    row[BOUND] = min(bounds) if len(bounds) == len(members) else None
    row[NEEDED] = max((member[NEEDED] for member in members if member.get(NEEDED)), default=None)


def seed_deviation(row: Mapping[str, Any], key: str) -> float | None:
    """The sample standard deviation of a column over seeds; None for one cell or equal values."""
    deviation: float | None = row.get(f"{key}_sd")
    value = row.get(key)
    if not deviation or value is None or deviation <= _ROUNDING * abs(value):
        return None
    return deviation


def seed_count(row: Mapping[str, Any]) -> str | None:
    """'mean of 3 seeds', '2 of 3 seeds'; None for one cell."""
    if "members" not in row:
        return None
    count, done = len(row["members"]), row["seeds_done"]
    return f"mean of {count} seeds" if done == count else f"{done} of {count} seeds"
