"""Loss over the steps of each recovery: a line for each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench_report.data.groups import models_with
from prunebench_report.sections.notes import curve, loss_curves
from prunebench_report.text import clean, short_label

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

MOST_LINES = 12


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model with recoveries, a plot for each kind of loss that they note."""
    found = []
    for model, members in models_with(
        given.detailed, lambda record: list(loss_curves(record.recovery_notes))
    ):
        kinds: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for record in members:
            for path, points in loss_curves(record.recovery_notes):
                # A long name still tells the recovery and its rank; a seed is in the card.
                name = short_label(given.names[record.id])
                name = given.names[record.id] if name in kinds.get(path, {}) else name
                kinds.setdefault(path, {})[name] = points
        # A recovery may note a curve for training and one for validation.
        figures = []
        for path, lines in kinds.items():
            caption = clean(f"{path.replace('_', ' ').capitalize()} of the recoveries")
            shown = dict(list(lines.items())[:MOST_LINES])
            figures.append(curve(caption, shown, "Step", "Loss, nats per token"))
        left_out = max(0, max(map(len, kinds.values())) - MOST_LINES)
        found.append({"model": model, "figures": figures, "legend": (), "left_out": left_out})
    return found
