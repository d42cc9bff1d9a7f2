"""Which cells of a large run are shown in detail, so that the file stays small enough to send.

Up to `SHOW_ALL` cells, all are. Beyond that the table, the plots and the embedded data still hold
every cell, but cards, tasks, the time breakdown and the pruning cost only those selected here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row
from prunebench_report.data.gate import quality
from prunebench_report.data.groups import by_model
from prunebench_report.data.pareto import frontier, settled_speedup

if TYPE_CHECKING:
    from prunebench.record.record import Record

SHOW_ALL = 60
"""Up to this many cells nothing is left out."""
MOST_DETAILED = 28
"""Cells in detail beyond that."""
MOST_FAILURES = 40
"""Failures with their log; the others get one line each."""

_Plane = list[tuple[tuple[float, float], Row]]


def select_detailed(rows: Sequence[Row]) -> list[Row]:
    """Dense, what no other cell dominates in a plot, then the best by quality.

    At most `MOST_DETAILED` rows; all of them if there are no more than `SHOW_ALL`.
    """
    if len(rows) <= SHOW_ALL:
        return list(rows)
    done = [row for row in rows if row["status"] == "ok"]
    first: dict[str, Row] = {row["cell"]: row for row in done if row["method"] == "dense"}
    for members in by_model(done).values():
        # The same planes as the plots, so that every cell named there has a card.
        for plane in _planes([row for row in members if row["method"] != "dense"]):
            best = frontier([point for point, _ in plane])
            first |= {plane[index][1]["cell"]: plane[index][1] for index in best}
    rest = sorted(
        (row for row in done if row["cell"] not in first), key=lambda row: -(quality(row) or 0)
    )
    keep = {row["cell"] for row in [*first.values(), *rest][:MOST_DETAILED]}
    return [row for row in rows if row["cell"] in keep]


def some_of_every_method(records: Sequence[Record], most: int) -> list[Record]:
    """At most ``most`` of them, in their order: dense, the first cell of every method, the second.

    Further seeds of a cell come after all other cells.
    """
    methods: dict[str, int] = {}
    labels: dict[str, int] = {}
    ranked = []
    for position, record in enumerate(records):
        method, label = record.cell.method.name, record.cell.label
        seed = labels.get(label, 0)
        labels[label] = seed + 1
        # A further seed does not count as another cell of its method.
        if not seed:
            methods[method] = methods.get(method, 0) + 1
        ranked.append((method != "dense", seed, methods[method], position))
    return [
        records[position] for *_, position in sorted(sorted(ranked)[:most], key=lambda one: one[3])
    ]


def _planes(rows: Sequence[Row]) -> tuple[_Plane, ...]:
    """Points of quality against speed, memory and size; larger is better."""
    planes: tuple[_Plane, ...] = ([], [], [])
    for row in rows:
        kept = quality(row)
        if kept is None:
            continue
        # Negated because the frontier takes the larger value as the better one.
        sizes = (_negated(row.get("memory_bytes")), _negated(row.get("disk_bytes")))
        for plane, value in zip(planes, (settled_speedup(row), *sizes), strict=True):
            if value is not None:
                plane.append(((value, kept), row))
    return planes


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def cell_ids(rows: Sequence[Row]) -> set[str]:
    """The cells behind these rows; a row of several seeds stands for all of them."""
    return {cell for row in rows for cell in row.get("members", (row["cell"],))}
