"""Records that stand in one table: a group a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.record.record import Record


def models_with(
    records: Sequence[Record], wanted: Callable[[Record], object]
) -> list[tuple[str | None, list[Record]]]:
    """The successful records that have what is ``wanted``, model by model, dense first.

    Beside each group the model's name as a heading, None where there is only one model.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "ok" and wanted(record):
            groups.setdefault(record.cell.model.name, []).append(record)
    for members in groups.values():
        members.sort(key=lambda record: record.cell.method.name != "dense")
    return [
        (clean(model) if len(groups) > 1 else None, members) for model, members in groups.items()
    ]
