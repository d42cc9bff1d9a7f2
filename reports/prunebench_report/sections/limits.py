"""Whether run B lost more than a limit allows, cell by cell: the thresholds of `compare` for CI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunebench_report.data.losses import Loss, Side, losses
from prunebench_report.data.uncertainty import Interval
from prunebench_report.sections.comparison import pair_cells
from prunebench_report.text import MISSING, signs

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

NO_RESULT = Interval(math.inf, math.inf)


def section(a: ReportInput, b: ReportInput, limits: Mapping[str, float]) -> list[Loss]:
    """The losses of every pair of cells; ``limits`` are shares by quantity.

    A cell that has a result in A and none in B is a loss beyond every limit.
    """
    found: list[Loss] = []
    for cell, partner in pair_cells(a.plan.cells, b.plan.cells).pairs:
        if not _done(a, cell):
            continue
        name = a.names[cell]
        if not _done(b, partner):
            found.append(Loss(name, "result", None, NO_RESULT, 0.0))
            continue
        found += losses(name, _side(a, cell), _side(b, partner), limits)
    return found


def table(found: Sequence[Loss]) -> list[list[str]]:
    """Cell, figure, loss with its interval, limit and verdict, as text."""
    return [
        [one.cell, one.figure, _loss(one), f"{100 * one.limit:g} %", one.verdict] for one in found
    ]


def _loss(one: Loss) -> str:
    if one.value is None:
        return "no result" if one.interval == NO_RESULT else "no figure"
    if math.isinf(one.value):
        return "not finite"
    low, high = one.interval
    text = _percent(one.value)
    if low is None or high is None:
        return f"{text} (interval {MISSING})"
    return text if low == high else f"{text} ({_percent(low)} to {_percent(high)})"


def _percent(share: float) -> str:
    return signs(f"{100 * share:+.2f} %")


def _done(given: ReportInput, cell: str) -> bool:
    record = given.record_by_id.get(cell)
    return record is not None and record.status == "ok"


def _side(given: ReportInput, cell: str) -> Side:
    return Side(given.record_by_id[cell], given.row_by_id[cell])
