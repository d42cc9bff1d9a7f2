"""The sparsity heat map of one cell: decoder layers along x, linears along y, removed layers as gaps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from prunebench_report.text import percent

if TYPE_CHECKING:
    from prunebench.measure.results import Audit

_HEIGHT = 15


@dataclass(frozen=True)
class _Square:
    layer: int
    zeros: int
    weights: int

    @property
    def share(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def heatmap(audit: Audit) -> dict[str, Any] | None:
    """Geometry for the template, in units of one layer along x; None where the model has no prunable linear.

    Neighbouring layers with the same share become one rect, so that a uniform map stays small.
    """
    names = list(dict.fromkeys(linear.name for linear in audit.linears))
    total = max([audit.layers_dense, *(linear.layer + 1 for linear in audit.linears)])
    if not names or not total:
        return None
    rows = []
    for index, name in enumerate(names):
        squares = sorted(
            (_Square(one.layer, one.zeros, one.rows * one.columns) for one in audit.linears if one.name == name),
            key=lambda square: square.layer,
        )
        zeros, weights = sum(s.zeros for s in squares), sum(s.weights for s in squares)
        low, high = min(s.share for s in squares), max(s.share for s in squares)
        rows.append(
            {
                "name": name,
                "y": index * _HEIGHT,
                "rects": [_rect(run, name) for run in _runs(squares)],
                "mean": percent(zeros / weights if weights else None),
                "range": percent(low) if percent(low) == percent(high) else f"{percent(low)} to {percent(high)}",
            }
        )
    return {
        "layers": total,
        "height": len(names) * _HEIGHT,
        "row": _HEIGHT,
        "rows": rows,
        "removed": [{"x": layer, "title": f"layer {layer} removed"} for layer in audit.removed_layers],
        "ticks": list(range(0, total, max(1, -(-total // 8)))),
        "title": f"Zeros by layer and linear, {percent(audit.sparsity)} overall",
        "desc": _describe(audit, rows),
    }


def _runs(squares: list[_Square]) -> list[list[_Square]]:
    """Consecutive layers whose shares print alike."""
    keyed = [(square, square.layer - index) for index, square in enumerate(squares)]
    return [
        [square for square, _ in run] for _, run in groupby(keyed, key=lambda pair: (pair[1], percent(pair[0].share)))
    ]


def _rect(run: list[_Square], name: str) -> dict[str, Any]:
    first, last = run[0].layer, run[-1].layer
    where = f"layer {first}" if first == last else f"layers {first} to {last}"
    share = sum(s.zeros for s in run) / max(1, sum(s.weights for s in run))
    return {
        "x": first,
        "width": last - first + 1,
        "shade": round(share, 3),
        "title": f"{where}, {name}: {percent(share)}",
    }


def _describe(audit: Audit, rows: list[dict[str, Any]]) -> str:
    parts = [f"{row['name']} {row['range']}" for row in rows]
    gone = ", ".join(map(str, audit.removed_layers))
    removed = f" Removed layers: {gone}." if gone else " No layer is removed."
    return f"Share of zeros over {len(audit.kept_layers)} of {audit.layers_dense} layers: {'; '.join(parts)}.{removed}"
