"""What the calibration text changes, as a table with the cells as ticks on one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.calibration import Spread, calibration_spreads
from prunebench_report.text import fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunebench_report.data.report_input import ReportInput

WIDTH = 208
"""Of the scale, in units of its SVG."""


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model its methods, each with a row for every figure; empty if no text varies."""
    spreads = calibration_spreads(given)
    models = list(dict.fromkeys(spread.model for spread in spreads))
    return [
        {
            "model": model if len(models) > 1 else None,
            # Whether any of its methods has more than one text.
            "several": any(len(one.samples) > 1 for one in spreads if one.model == model),
            "methods": _methods([spread for spread in spreads if spread.model == model]),
        }
        for model in models
    ]


def _methods(spreads: Sequence[Spread]) -> list[dict[str, Any]]:
    ends = {
        figure: _ends([one for one in spreads if one.figure == figure])
        for figure in dict.fromkeys(one.figure for one in spreads)
    }
    return [
        {
            "name": method,
            "rows": [_row(one, *ends[one.figure]) for one in spreads if one.method == method],
        }
        for method in dict.fromkeys(one.method for one in spreads)
    ]


def _ends(spreads: Sequence[Spread]) -> tuple[float, float]:
    """The ends of the scale that all methods share for one figure."""
    values = [value for one in spreads for sample in one.samples for value in sample.values]
    return min(values), max(values)


def _row(one: Spread, low: float, high: float) -> dict[str, Any]:
    several = len(one.samples) > 1
    missing = f" of {one.planned}" if one.done < one.planned else ""
    return {
        "figure": one.figure,
        "mean": fixed(one.mean, 1),
        "lowest": _sample(one.lowest.name, one.lowest.mean) if several else None,
        "highest": _sample(one.highest.name, one.highest.mean) if several else None,
        "over_texts": fixed(one.over_calibrations, 2),
        "over_seeds": fixed(one.over_seeds, 2),
        "cells": f"{one.done}{missing}",
        "made_of": _made_of(one),
        "scale": _scale(one, low, high),
    }


def _sample(name: str, mean: float) -> dict[str, str]:
    return {"name": name, "mean": fixed(mean, 1)}


def _made_of(one: Spread) -> str:
    """'3 texts, 2 seeds each', '3 texts, 1 to 2 seeds each'."""
    counts = sorted({len(sample.values) for sample in one.samples})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    texts = len(one.samples)
    return (
        f"{texts} text{'s' if texts > 1 else ''}, "
        f"{seeds} seed{'s' if counts != [1] else ''}{' each' if texts > 1 else ''}"
    )


def _scale(one: Spread, low: float, high: float) -> dict[str, Any]:
    """A tick for each cell and a dot for the mean of each calibration."""

    def x(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(6 + share * (WIDTH - 12), 1)

    words = "; ".join(
        f"{sample.name or one.method}: {', '.join(fixed(value, 1) for value in sample.values)}"
        for sample in one.samples
    )
    return {
        "title": f"{one.figure} from {fixed(low, 1)} to {fixed(high, 1)} %. {words}",
        "width": WIDTH,
        "low": fixed(low, 1),
        "high": fixed(high, 1),
        "ticks": "".join(f"M{x(value)} 1v16" for sample in one.samples for value in sample.values),
        "dots": [
            {"x": x(sample.mean), "title": f"{sample.name}: {fixed(sample.mean, 1)} %"}
            for sample in one.samples
        ],
    }
