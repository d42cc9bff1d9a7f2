"""Figures of metric plugins: methods against figures, and every figure of one cell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunebench_report.data.metrics import (
    Figure,
    figure_recovery,
    figures_by_key,
    metric_protocol,
)
from prunebench_report.sections.score_tables import ScoreCell, score_cell, score_tables
from prunebench_report.text import MISSING, Facts, clean, fixed, number, seconds, shorten, signs

if TYPE_CHECKING:
    from prunebench.record.quality import MetricFigure
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

SHARE = "share"
"""The unit of figures between 0 and 1, which are shown in per cent."""
# A relative difference that cannot be seen in the four digits shown.
_SAME = 5e-5
_LONGEST_REASON = 160


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model with metrics, a table of cells against figures."""
    return score_tables(
        given,
        figures_by_key,
        head=_head,
        cell=_cell,
        protocol=lambda one: metric_protocol(one[0]),
    )


def facts(record: Record) -> Facts:
    """Every metric of a cell in words, with its text and the time that it took."""
    found = []
    for result in record.quality.metrics if record.quality else []:
        texts = [
            f"{one.name} {_in_words(one)}" if len(result.figures) > 1 else _in_words(one)
            for one in result.figures
        ]
        about = f"{metric_protocol(result)}; {seconds(result.seconds)}"
        found.append((clean(result.label), clean(f"{', '.join(texts)} ({about})")))
    return found


def with_unit(value: float | None, unit: str) -> str:
    """A figure in its unit: '43.75 %' of a share, '0.1048 nats'."""
    if value is None:
        return MISSING
    text = number(_scale(unit) * value, 4)
    return f"{text} {'%' if unit == SHARE else unit}".rstrip()


def change(value: float, dense: float, unit: str) -> str | None:
    """The difference in the figure's unit with its sign; None if no digit shown differs."""
    difference = _scale(unit) * (value - dense)
    # abs_tol: a divergence of 1e-10 beside dense's 0 is rounding.
    if math.isclose(value, dense, rel_tol=_SAME, abs_tol=1e-9):
        return None
    return signs(f"{'+' if difference > 0 else '-'}{number(abs(difference))}")


def _cell(mine: Figure | None, dense: Figure | None) -> ScoreCell:
    """A figure and its difference from dense in words; without a figure, the reason."""
    figure = mine[1] if mine else None
    if figure is None or figure.value is None:
        reason = figure.reason if figure else None
        return score_cell(note=clean(shorten(reason, _LONGEST_REASON)) if reason else None)
    text = number(_scale(figure.unit) * figure.value, 4)
    reference = dense[1] if dense else None
    if reference is None or reference.value is None:
        return score_cell(text)
    difference = change(figure.value, reference.value, figure.unit)
    if difference is None:
        return score_cell(text, "= dense")
    higher = figure.value > reference.value
    tone = "better" if higher == figure.higher_is_better else "worse"
    share = figure_recovery(figure, reference)
    kept = "" if share is None else f", recovery {fixed(100 * share, 1)} %"
    return score_cell(text, f"{difference}, {tone}{kept}", tone)


def _in_words(figure: MetricFigure) -> str:
    if figure.value is None:
        return f"not available: {figure.reason}"
    return with_unit(figure.value, figure.unit)


def _head(one: Figure) -> tuple[str, str]:
    """A figure's own name; below it the metric with its options, and the unit."""
    result, figure = one
    lines = [_unit_and_direction(figure)]
    if result.label != figure.name:
        lines.insert(0, result.label)
    return figure.name, "\n".join(lines)


def _unit_and_direction(figure: MetricFigure) -> str:
    unit = "%" if figure.unit == SHARE else figure.unit
    direction = f"{'higher' if figure.higher_is_better else 'lower'} is better"
    return f"{unit}, {direction}" if unit else direction


def _scale(unit: str) -> float:
    return 100.0 if unit == SHARE else 1.0
