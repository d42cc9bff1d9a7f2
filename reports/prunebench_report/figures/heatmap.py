"""The map of what is gone in one cell: decoder layers along x, linears along y, removed layers and blocks crossed out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from prunebench_report.text import percent

if TYPE_CHECKING:
    from prunebench.record.audit import Audit, LinearAudit

_HEIGHT = 15


@dataclass(frozen=True)
class _Square:
    """One matrix: how many of the dense model's weights are zero or cut off."""

    layer: int
    gone: int
    weights: int

    @property
    def share(self) -> float:
        return self.gone / self.weights if self.weights else 0.0


def _square(one: LinearAudit) -> _Square:
    present = one.rows * one.columns
    weights = present if one.dense is None else one.dense
    return _Square(one.layer, one.zeros + weights - present, weights)


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
            (_square(one) for one in audit.linears if one.name == name),
            key=lambda square: square.layer,
        )
        gone, weights = sum(s.gone for s in squares), sum(s.weights for s in squares)
        low, high = min(s.share for s in squares), max(s.share for s in squares)
        rows.append(
            {
                "name": name,
                "y": index * _HEIGHT,
                "rects": [_rect(run, name) for run in _runs(squares)],
                "mean": percent(gone / weights if weights else None),
                "range": percent(low)
                if percent(low) == percent(high)
                else f"{percent(low)} to {percent(high)}",
            }
        )
    return {
        "layers": total,
        "height": len(names) * _HEIGHT,
        "row": _HEIGHT,
        "rows": rows,
        "removed": _removed(audit, names),
        "ticks": list(range(0, total, max(1, -(-total // 8)))),
        "title": "Weights that are zero or cut off, by layer and linear",
        "desc": _describe(audit, rows),
    }


def _removed(audit: Audit, names: list[str]) -> list[dict[str, Any]]:
    """What to cross out: whole columns for layers, the rows of their linears for attentions and MLPs."""
    whole = [
        {"x": layer, "y": 0, "height": len(names) * _HEIGHT, "title": f"layer {layer} removed"}
        for layer in audit.removed_layers
    ]
    present = {(one.layer, one.name) for one in audit.linears}
    parts = []
    for block in audit.removed_blocks:
        layer, kind = int(block.partition(".")[0]), block.partition(".")[2]
        missing = [index for index, name in enumerate(names) if (layer, name) not in present]
        if missing:
            height = (missing[-1] - missing[0] + 1) * _HEIGHT
            parts.append(
                {
                    "x": layer,
                    "y": missing[0] * _HEIGHT,
                    "height": height,
                    "title": f"layer {layer}: {kind} removed",
                }
            )
    return whole + parts


def _runs(squares: list[_Square]) -> list[list[_Square]]:
    """Consecutive layers whose shares print alike."""
    keyed = [(square, square.layer - index) for index, square in enumerate(squares)]
    return [
        [square for square, _ in run]
        for _, run in groupby(keyed, key=lambda pair: (pair[1], percent(pair[0].share)))
    ]


def _rect(run: list[_Square], name: str) -> dict[str, Any]:
    first, last = run[0].layer, run[-1].layer
    where = f"layer {first}" if first == last else f"layers {first} to {last}"
    share = sum(s.gone for s in run) / max(1, sum(s.weights for s in run))
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
    if audit.removed_blocks:
        removed += f" Removed attentions and MLPs: {', '.join(audit.removed_blocks)}."
    return f"Share of weights that are zero or cut off, over {len(audit.kept_layers)} of {audit.layers_dense} layers: {'; '.join(parts)}.{removed}"
