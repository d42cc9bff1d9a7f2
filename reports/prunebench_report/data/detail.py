"""Which cells of a large run are shown in detail: a file for a thousand cells must stay one that can be sent.

Up to `ALL` cells everything stands in the report. Beyond that the table, the plots and the embedded data still have every
cell; cards, tasks, the split of the time and the cost of pruning only those chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunebench_report.data.table import Row, by_model
from prunebench_report.figures.pareto import frontier, settled_speedup
from prunebench_report.sections.tasks import quality_key

ALL = 60
"""Cells up to which nothing is left out."""
CHOSEN = 40
"""Cells in detail beyond that."""
FAILURES = 40
"""Failures with their log; of the others a line."""


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Dense, what no other cell dominates in a plot, then the best by quality: at most `CHOSEN`, all of a small run."""
    if len(rows) <= ALL:
        return list(rows)
    done = [row for row in rows if row["status"] == "ok"]
    first: dict[str, Row] = {row["cell"]: row for row in done if row["method"] == "dense"}
    for members in by_model(done).values():
        pruned = [row for row in members if row["method"] != "dense"]
        for points in _planes(pruned):
            kept = frontier([point for point, _ in points])
            first |= {points[index][1]["cell"]: points[index][1] for index in kept}
    rest = sorted(
        (row for row in done if row["cell"] not in first),
        key=lambda row: -(row.get(quality_key(row)) or 0),
    )
    keep = {row["cell"] for row in [*first.values(), *rest][:CHOSEN]}
    return [row for row in rows if row["cell"] in keep]


def _planes(rows: Sequence[Row]) -> list[list[tuple[tuple[float, float], Row]]]:
    """Quality against speed, memory and size, larger is better."""
    planes: list[list[tuple[tuple[float, float], Row]]] = [[], [], []]
    for row in rows:
        quality = row.get(quality_key(row))
        if quality is None:
            continue
        speed = settled_speedup(row)
        values = (speed, _minus(row.get("memory_bytes")), _minus(row.get("disk_bytes")))
        for plane, value in zip(planes, values, strict=True):
            if value is not None:
                plane.append(((value, quality), row))
    return planes


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def ids(rows: Sequence[Row]) -> set[str]:
    """The cells behind these rows: of a row of several seeds, all of them."""
    return {cell for row in rows for cell in row.get("members", (row["cell"],))}
