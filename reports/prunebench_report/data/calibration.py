"""What the calibration changes: figures of cells that are equal but for calibration and seed.

A method that looks at text gives another model for another text, and for another sample of the same
text. The spread over both says how far a difference between two methods may be chance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.gate import PERPLEXITY_RECOVERY, TASKS_RECOVERY
from prunebench_report.data.names import calibration_names, unique_names
from prunebench_report.data.selection import cell_ids
from prunebench_report.text import clean

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.text import CalibrationSpec
    from prunebench_report.data.report_input import ReportInput


@dataclass(frozen=True)
class Sample:
    """One calibration: its name among the others, and the figure of each seed that has one."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)


@dataclass(frozen=True)
class Spread:
    """One figure of one method over calibrations and seeds, in per cent."""

    method: str
    model: str
    figure: str
    samples: tuple[Sample, ...]
    """The calibrations with a figure, in the order of the plan."""
    planned: int
    """Cells of the plan; those with a figure may be fewer."""

    @property
    def done(self) -> int:
        return sum(len(one.values) for one in self.samples)

    @property
    def mean(self) -> float:
        """Every calibration counts the same, however many of its seeds have a figure."""
        return fmean(one.mean for one in self.samples)

    @property
    def lowest(self) -> Sample:
        return min(self.samples, key=lambda one: one.mean)

    @property
    def highest(self) -> Sample:
        return max(self.samples, key=lambda one: one.mean)

    @property
    def over_calibrations(self) -> float | None:
        """Sample standard deviation of the calibrations' means; None for one calibration."""
        return stdev(one.mean for one in self.samples) if len(self.samples) > 1 else None

    @property
    def over_seeds(self) -> float | None:
        """Standard deviation of one calibration's seeds, pooled; None without two seeds of one.

        sqrt(sum (n - 1) s^2 / sum (n - 1)), because the calibrations' own means differ.
        """
        repeated = [one.values for one in self.samples if len(one.values) > 1]
        freedom = sum(len(values) - 1 for values in repeated)
        if not freedom:
            return None
        return math.sqrt(sum((len(v) - 1) * variance(v) for v in repeated) / freedom)


def calibration_spreads(given: ReportInput) -> list[Spread]:
    """The spread of perplexity recovery and of task scores for each method whose text varies.

    Empty if the plan gives every method one sample of one text. In a large run only the methods
    that are shown in detail.
    """
    rows = {row["cell"]: row for row in given.cells}
    groups = calibration_groups(given.plan.cells)
    names = unique_names([group[0] for group in groups], given.runs)
    detailed = cell_ids(given.detailed_rows)
    return [
        spread
        for group in groups
        if detailed & {cell.id for cell in group}
        for spread in _spreads(group, rows, names[group[0].id])
    ]


def calibration_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that are equal but for calibration and seed, if their calibration windows differ."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.calibration is not None:
            identity = cell.identity()
            rest = {key: identity[key] for key in identity if key not in {"calibration", "seed"}}
            found.setdefault(json.dumps(rest, sort_keys=True), []).append(cell)
    return [group for group in found.values() if len({_windows(cell) for cell in group}) > 1]


def _windows(cell: Cell) -> tuple[CalibrationSpec | None, int | None]:
    """What decides the calibration windows: without chance in the sampler, not the seed."""
    spec = cell.calibration
    return spec, cell.seed if spec is not None and spec.drawn else None


def _spreads(group: Sequence[Cell], rows: Mapping[str, Row], method: str) -> list[Spread]:
    """One for each figure that a cell of the group has."""
    names = calibration_names([cell.calibration for cell in group])
    done = [
        (name, rows[cell.id])
        for name, cell in zip(names, group, strict=True)
        if rows[cell.id]["status"] == "ok"
    ]
    found = []
    for key, figure in _figures(group[0], [row for _, row in done]).items():
        # Scores are shares; recoveries are in per cent already.
        unit = 1.0 if key.startswith((PERPLEXITY_RECOVERY, TASKS_RECOVERY)) else 100.0
        values: dict[str, list[float]] = {}
        for name, row in done:
            if row.get(key) is not None:
                values.setdefault(name, []).append(unit * row[key])
        if values:
            samples = tuple(Sample(name, tuple(seeds)) for name, seeds in values.items())
            found.append(Spread(method, clean(group[0].model.name), figure, samples, len(group)))
    return found


def _figures(cell: Cell, rows: Sequence[Row]) -> dict[str, str]:
    """The columns to compare, by name."""
    found: dict[str, str] = {}
    for index, spec in enumerate(cell.perplexity):
        about = [spec.corpus.name]
        if len(cell.perplexity) > 1:
            about += [spec.protocol, *([f"{spec.length} tokens"] if spec.length else [])]
        found[numbered(PERPLEXITY_RECOVERY, index)] = clean(
            f"perplexity recovery, {', '.join(about)}"
        )
    for row in rows:
        if row.get("tasks_run"):
            found.setdefault(TASKS_RECOVERY, "recovery over tasks")
        index = 0
        while (task := row.get(numbered("task", index))) is not None:
            metric = row[numbered("task_metric", index)]
            found.setdefault(numbered("task_value", index), f"{task} {metric}")
            index += 1
    return found
