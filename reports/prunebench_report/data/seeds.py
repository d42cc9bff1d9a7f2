"""Cells that differ only in their seed as one row: the mean, the sample standard deviation, and how many there are.

The mean of a latency is the mean of the cells' medians: samples of different cells are not pooled. The ends of an
interval are averaged for times, since they tell how well a cell was timed; for quality, where the seed decides the
outcome, they become mean - deviation and mean + deviation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from prunebench_report.data import columns as fields
from prunebench_report.data import table as frames
from prunebench_report.sections.tasks import RECOVERY, quality_key

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell

Row = frames.Row

_QUALITY = re.compile(r"perplexity(_\d+)?")
_EQUAL = 1e-9


def groups(cells: Sequence[Cell]) -> list[list[str]]:
    """The ids of cells that differ only in their seed, together, in the order of the first of each group."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        identity = {key: value for key, value in cell.identity().items() if key != "seed"}
        found.setdefault(json.dumps(identity, sort_keys=True), []).append(cell.id)
    return list(found.values())


def pooled(rows: Sequence[Row], cells: Sequence[Cell], gate: float) -> list[Row]:
    """``rows`` with one row for each group of seeds, where its first cell stood; ``gate`` is a share, e.g. 0.95.

    A row of several cells has the id of the first with '-seeds' behind it, their ids as `members`, the number of those
    with a result as `seeds_done`, and beside each number its sample standard deviation, `KEY_sd`.
    """
    by_id = {row["cell"]: row for row in rows}
    families = [group for group in groups(cells) if group[0] in by_id]
    named = frames.names([cell for cell in cells if cell.id in {group[0] for group in families}])
    found = {}
    for group in families:
        members = [by_id[cell] for cell in group if cell in by_id]
        found[group[0]] = members[0] if len(members) == 1 else _pool(members, named[group[0]], gate)
    return [found[row["cell"]] for row in rows if row["cell"] in found]


def _pool(members: Sequence[Row], name: str, gate: float) -> Row:
    done = [row for row in members if row["status"] == "ok"]
    first = (done or [row for row in members if "error_phase" in row] or members)[0]
    row = {
        **first,
        "cell": f"{members[0]['cell']}-seeds",
        "name": name,
        "seed": None,
        "members": [member["cell"] for member in members],
        "seeds_done": len(done),
    }
    for key in first if len(done) > 1 else ():
        row |= _together(key, [member[key] for member in done])
    _spread(
        row,
        [
            key
            for key in row
            if key.endswith(("_low", "_high")) or re.search(r"_(low|high)_\d+$", key)
        ],
    )
    if len(done) > 1:
        row["gate_passed"] = _passed(row, gate)
    return row


def _passed(row: Row, gate: float) -> bool | None:
    """Whether the means pass the quality gate, by the rule for single cells: that of the tasks, else every protocol's."""
    judged = quality_key(row)
    known = [row.get(judged)]
    if judged != RECOVERY:
        protocols = [
            key for key in row if re.fullmatch(r"perplexity(_\d+)?", key) and row[key] is not None
        ]
        known = [row.get(key.replace("perplexity", judged)) for key in protocols]
    shares = [share for share in known if share is not None]
    return min(shares) >= 100 * gate if shares and len(shares) == len(known) else None


def _together(key: str, values: Sequence[Any]) -> dict[str, Any]:
    """One column of several cells: the mean and deviation of numbers, else what all agree on."""
    if key in {"cell", "name", "seed", "status"}:
        return {}
    if fields.kind_of(key) not in {"integer", "real"}:
        same = all(value == values[0] for value in values)
        return {key: values[0] if same else None}
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return {key: None}
    if all(value == known[0] for value in known):
        return {key: known[0], f"{key}_sd": 0.0}
    return {key: fmean(known), f"{key}_sd": stdev(known)}


def _spread(row: dict[str, Any], ends: Sequence[str]) -> None:
    """Replace the intervals of quality, which are over windows of text, by those over seeds."""
    for end in ends:
        sign = -1 if "_low" in end else 1
        key = re.sub(r"_(low|high)(?=_\d+$|$)", "", end)
        deviation = row.get(f"{key}_sd")
        if _QUALITY.fullmatch(key) and deviation is not None and row.get(key) is not None:
            row[end] = row[key] + sign * deviation


def spread(row: Mapping[str, Any], key: str) -> float | None:
    """The sample standard deviation of a column over seeds; None for one cell, or where all seeds agree."""
    deviation: float | None = row.get(f"{key}_sd")
    value = row.get(key)
    return (
        deviation if deviation and value is not None and deviation > _EQUAL * abs(value) else None
    )


def said(row: Mapping[str, Any]) -> str | None:
    """'mean of 3 seeds', '2 of 3 seeds'; None for one cell."""
    if "members" not in row:
        return None
    count, done = len(row["members"]), row["seeds_done"]
    return f"mean of {count} seeds" if done == count else f"{done} of {count} seeds"
