"""The report's section about budget-search: what it predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunebench import Folded, Paragraph, ReportSection, Table

if TYPE_CHECKING:
    from prunebench import Record, ReportData

METHOD = "budget-search"
UNITS = {"parameters": (1e6, "M parameters"), "memory": (1e6, "MB"), "latency": (1e6, "ms a step")}
"""Divisor and unit of each budget's sizes."""


class BudgetPredictions(ReportSection):
    """Predicted beside measured, and the variants that were chosen."""

    name = METHOD
    title = "Budgeted search: predicted and measured"

    def build(self, data: ReportData) -> list[Paragraph | Table | Folded]:
        found = {
            record.id: record
            for record in data.records
            if record.cell.method.name == METHOD and "predicted_size" in record.method_notes
        }
        rows = {row["cell"]: row for row in data.rows}
        if not found:
            return []
        named = {rows[key]["name"]: (record, rows[key]) for key, record in found.items()}
        losses = {row["cell"]: row["nll_nats"] for row in data.rows}
        return [
            Paragraph(_ABOUT),
            Table(_HEAD, [_row(name, *both, losses) for name, both in named.items()]),
            *(
                Folded(f"Variants of {name}", [_variants(each)])
                for name, (each, _) in named.items()
            ),
        ]


_HEAD = (
    "Cell",
    "Budget",
    "Dense",
    "Allowed",
    "Predicted",
    "Measured",
    "Cost predicted",
    "Cost measured",
    "Loss above dense",
)
_ABOUT = (
    "The size of each model against its budget, and the cost in quality on the calibration text, in"
    " nats per token: the sum of what each variant costs alone, and what all of them cost together."
    " The cost is the KL divergence from dense, or the loss if the cell says so. The last column is"
    " the loss on the text that perplexity is measured on, above that of the dense model."
)


def _row(
    name: str, record: Record, row: Mapping[str, Any], losses: Mapping[str, float | None]
) -> list[str | None]:
    notes = record.method_notes
    divisor, unit = UNITS[notes["budget"]]
    sizes = [
        f"{notes[key] / divisor:.2f}"
        for key in ("dense_size", "limit", "predicted_size", "measured_size")
    ]
    loss, dense = row["nll_nats"], losses.get(row["dense_cell"])
    above = None if loss is None or dense is None else f"{loss - dense:.3f}"
    costs = [f"{notes[key]:.3f}" for key in ("predicted_cost", "measured_cost")]
    return [name, unit, *sizes, *costs, above]


def _variants(record: Record) -> Table:
    """What every layer keeps of its groups, and what that costs if all else stays."""
    divisor, unit = UNITS[record.method_notes["budget"]]
    rows = []
    for block, (taken, *others) in record.method_notes["variants"].items():
        layer, _, kind = block.partition(".")
        groups, size, cost = taken
        most = max(groups, *(other[0] for other in others))
        rows.append([int(layer), kind, f"{groups:g} of {most:g}", size / divisor, cost])
    head = ("Layer", "Block", "KV groups or channels", unit, "Cost, nats per token")
    return Table(head, rows)
