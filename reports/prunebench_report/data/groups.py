"""Cells of one model together: only those may be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row
from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.record.record import Record


def by_model(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """The rows of each model, in the order of the table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["model"], []).append(row)
    return groups


def models_with(
    records: Sequence[Record], wanted: Callable[[Record], object]
) -> list[tuple[str | None, list[Record]]]:
    """The successful records for which ``wanted`` is true, model by model, dense first.

    Each group comes with the model's name as a heading; None if there is only one model.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "ok" and wanted(record):
            groups.setdefault(record.cell.model.name, []).append(record)
    for members in groups.values():
        # A stable sort: the others keep the order of the plan.
        members.sort(key=lambda record: record.cell.method.name != "dense")
    return [
        (clean(model) if len(groups) > 1 else None, members) for model, members in groups.items()
    ]
