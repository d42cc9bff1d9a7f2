"""Figures of plugins' metrics beside dense: columns of the one table, and the section that sets methods against metrics.

A figure's recovery is value / dense, or dense / value where lower is better; it is given where both are above zero. Nothing
says how uncertain such a figure is, so that a difference from dense is named and not judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.measure.quality.task_scores import task_recovery
from prunebench_report.data import columns as fields
from prunebench_report.data.groups import models_with
from prunebench_report.text import MISSING, clean, finite, fixed, number, seconds, shorten, signs

if TYPE_CHECKING:
    from prunebench.record.quality import MetricFigure, MetricResult
    from prunebench.record.record import Record

Key = tuple[str, str]
"""What two figures must share before they stand in one column: all that decides the metric, and the figure's name."""

SHARE = "share"
"""The unit of what lies between 0 and 1, shown in per cent."""
_SAME = 5e-5
"""A relative difference that is none at the digits shown."""
_REASON = 160


def order(records: Sequence[Record]) -> list[Key]:
    """Every figure of these records once, in the order of the first that has it."""
    return list(dict.fromkeys(key for record in records for key in _by_key(record)))


def columns(record: Record, dense: Record | None, keys: Sequence[Key]) -> dict[str, Any]:
    """The cells of one row: a set of columns for each of ``keys``."""
    mine, theirs = _by_key(record), _by_key(dense)
    row: dict[str, Any] = {}
    for index, key in enumerate(keys):
        if key not in mine:
            continue
        result, figure = mine[key]
        share = _recovery(figure, theirs[key][1] if key in theirs else None)
        values = {
            "metric": _name(result, figure),
            "metric_unit": figure.unit,
            "metric_higher_is_better": figure.higher_is_better,
            "metric_value": figure.value,
            "metric_recovery_percent": None if share is None else 100 * share,
            "metric_reason": figure.reason,
            "metric_protocol": protocol(result),
        }
        row |= {fields.numbered(name, index): finite(value) for name, value in values.items()}
    return row


def protocol(result: MetricResult) -> str:
    """Everything that names a figure, in one line."""
    windows = f", {result.windows} windows of {result.window} tokens" if result.windows else ""
    text = f", {result.text}{windows}" if result.text else ""
    return f"{result.label}{text}, {result.distribution} {result.version}"


def section(
    records: Sequence[Record], dense_of: Mapping[str, str | None], named: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each model with metrics a table of methods against figures.

    ``dense_of`` has each cell's dense cell, ``named`` its name.
    """
    by_id = {record.id: record for record in records}
    tables = []
    for model, members in models_with(records, _by_key):
        keys = order(members)
        known = [_by_key(record) for record in reversed(members)]
        heads = {key: next(one[key] for one in known if key in one) for key in keys}
        rows = []
        for record in members:
            other = by_id.get(dense_of.get(record.id) or "")
            mine, theirs = _by_key(record), {} if other is record else _by_key(other)
            cells = [
                _cell(
                    mine[key][1] if key in mine else None, theirs[key][1] if key in theirs else None
                )
                for key in keys
            ]
            dense = record.cell.method.name == "dense"
            rows.append(
                {"id": record.id, "name": clean(named[record.id]), "dense": dense, "cells": cells}
            )
        tables.append(
            {
                "model": model,
                "heads": [
                    {"name": clean(_name(*one)), "about": clean(_about(one[1]))}
                    for one in heads.values()
                ],
                "rows": rows,
                "protocols": list(
                    dict.fromkeys(clean(protocol(result)) for result, _ in heads.values())
                ),
            }
        )
    return tables


def parts(record: Record) -> list[tuple[str, str]]:
    """Every metric of a cell in words, with its text and what it took."""
    found = []
    for result in record.quality.metrics if record.quality else []:
        told = ", ".join(
            f"{one.name} {_said(one)}" if len(result.figures) > 1 else _said(one)
            for one in result.figures
        )
        found.append(
            (clean(result.label), clean(f"{told} ({protocol(result)}; {seconds(result.seconds)})"))
        )
    return found


def shown(value: float | None, unit: str) -> str:
    """A figure in its unit: '43.75 %' of a share, '0.1048 nats'."""
    if value is None:
        return MISSING
    text = number(_scale(unit) * value, 4)
    return f"{text} {'%' if unit == SHARE else unit}".rstrip()


def change(value: float, dense: float, unit: str) -> str | None:
    """The difference in the figure's unit, with its sign; None where there is none at the digits shown."""
    difference = _scale(unit) * (value - dense)
    if math.isclose(value, dense, rel_tol=_SAME, abs_tol=1e-9):
        return None
    return signs(f"{'+' if difference > 0 else '-'}{number(abs(difference))}")


def _cell(figure: MetricFigure | None, dense: MetricFigure | None) -> dict[str, Any]:
    """A figure; against dense the difference in sign and words; where there is no figure, the reason."""
    if figure is None or figure.value is None:
        reason = figure.reason if figure else None
        return {
            "text": MISSING,
            "note": clean(shorten(reason, _REASON)) if reason else None,
            "tone": None,
        }
    cell = {"text": number(_scale(figure.unit) * figure.value, 4), "note": None, "tone": None}
    if dense is None or dense.value is None:
        return cell
    step = change(figure.value, dense.value, figure.unit)
    if step is None:
        return {**cell, "note": "= dense"}
    tone = "better" if (figure.value > dense.value) == figure.higher_is_better else "worse"
    share = _recovery(figure, dense)
    kept = "" if share is None else f", recovery {fixed(100 * share, 1)} %"
    return {**cell, "note": f"{step}, {tone}{kept}", "tone": tone}


def _recovery(figure: MetricFigure, dense: MetricFigure | None) -> float | None:
    if dense is None or not figure.value or not dense.value:
        return None
    share = task_recovery(figure.value, dense.value, higher_is_better=figure.higher_is_better)
    return share if share is not None and share > 0 else None


def _said(figure: MetricFigure) -> str:
    return (
        shown(figure.value, figure.unit)
        if figure.value is not None
        else f"not available: {figure.reason}"
    )


def _about(figure: MetricFigure) -> str:
    unit = "%" if figure.unit == SHARE else figure.unit
    return f"{unit}, {'higher' if figure.higher_is_better else 'lower'} is better".removeprefix(
        ", "
    )


def _scale(unit: str) -> float:
    return 100.0 if unit == SHARE else 1.0


def _name(result: MetricResult, figure: MetricFigure) -> str:
    return result.label if figure.name == result.metric else f"{result.label}: {figure.name}"


def _by_key(record: Record | None) -> dict[Key, tuple[MetricResult, MetricFigure]]:
    if record is None or record.quality is None:
        return {}
    return {
        (json.dumps(ref.identity(), sort_keys=True), figure.name): (result, figure)
        for ref, result in zip(record.cell.metrics, record.quality.metrics, strict=False)
        for figure in result.figures
    }
