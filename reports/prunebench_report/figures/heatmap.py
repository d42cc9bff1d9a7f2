"""The map of what is gone in one cell: layers along x, linears along y."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from prunebench_report.text import percent

if TYPE_CHECKING:
    from prunebench.record.audit import Audit, LinearAudit

_ROW_HEIGHT = 15
_MOST_TICKS = 8


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
    # What was cut off is gone as well: zeros plus the weights that are no longer present.
    return _Square(one.layer, one.zeros + weights - present, weights)


def heatmap(audit: Audit) -> dict[str, Any] | None:
    """Geometry for the template, one unit per layer along x; None without prunable linears.

    Neighbouring layers with the same share become one rectangle, so that a uniform map stays small.
    """
    names = list(dict.fromkeys(linear.name for linear in audit.linears))
    # Rectangles are placed by the index of their layer in the dense model.
    total = max([audit.layers_dense, *(linear.layer + 1 for linear in audit.linears)])
    if not names or not total:
        return None
    rows = [_row(audit, index, name) for index, name in enumerate(names)]
    return {
        "layers": total,
        "height": len(names) * _ROW_HEIGHT,
        "row": _ROW_HEIGHT,
        "rows": rows,
        "removed": _removed(audit, names),
        "ticks": list(range(0, total, max(1, -(-total // _MOST_TICKS)))),
        "title": "Weights that are zero or cut off, by layer and linear",
        "desc": _describe(audit, rows),
    }


def _row(audit: Audit, index: int, name: str) -> dict[str, Any]:
    squares = sorted(
        (_square(one) for one in audit.linears if one.name == name),
        key=lambda square: square.layer,
    )
    low = percent(min(square.share for square in squares))
    high = percent(max(square.share for square in squares))
    return {
        "name": name,
        "y": index * _ROW_HEIGHT,
        "rects": [_rect(run, name) for run in _runs(squares)],
        "mean": percent(_mean_share(squares)),
        "range": low if low == high else f"{low} to {high}",
    }


def _mean_share(squares: Sequence[_Square]) -> float | None:
    gone, weights = sum(s.gone for s in squares), sum(s.weights for s in squares)
    return gone / weights if weights else None


def _removed(audit: Audit, names: list[str]) -> list[dict[str, Any]]:
    """What to cross out: columns for layers, the rows of their linears for attentions and MLPs."""
    whole = [
        {"x": layer, "y": 0, "height": len(names) * _ROW_HEIGHT, "title": f"layer {layer} removed"}
        for layer in audit.removed_layers
    ]
    present = {(one.layer, one.name) for one in audit.linears}
    parts = []
    for block in audit.removed_blocks:
        # '12.mlp': the decoder layer and which half of it
        layer, kind = int(block.partition(".")[0]), block.partition(".")[2]
        missing = [index for index, name in enumerate(names) if (layer, name) not in present]
        if missing:
            parts.append(
                {
                    "x": layer,
                    "y": missing[0] * _ROW_HEIGHT,
                    "height": (missing[-1] - missing[0] + 1) * _ROW_HEIGHT,
                    "title": f"layer {layer}: {kind} removed",
                }
            )
    return whole + parts


def _runs(squares: Sequence[_Square]) -> list[list[_Square]]:
    """Consecutive layers whose shares print alike."""
    # layer - index is constant as long as no layer is missing in between.
    keyed = [(square, square.layer - index) for index, square in enumerate(squares)]
    return [
        [square for square, _ in run]
        for _, run in groupby(keyed, key=lambda pair: (pair[1], percent(pair[0].share)))
    ]


def _rect(run: list[_Square], name: str) -> dict[str, Any]:
    first, last = run[0].layer, run[-1].layer
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    share = _mean_share(run) or 0.0
    return {
        "x": first,
        "width": last - first + 1,
        "shade": round(share, 3),  # opacity; three digits keep the file small
        "title": f"{layers}, {name}: {percent(share)}",
    }


def _describe(audit: Audit, rows: list[dict[str, Any]]) -> str:
    parts = "; ".join(f"{row['name']} {row['range']}" for row in rows)
    gone = ", ".join(map(str, audit.removed_layers))
    removed = f" Removed layers: {gone}." if gone else " No layer is removed."
    if audit.removed_blocks:
        removed += f" Removed attentions and MLPs: {', '.join(audit.removed_blocks)}."
    layers = f"{len(audit.kept_layers)} of {audit.layers_dense} layers"
    return f"Share of weights that are zero or cut off, over {layers}: {parts}.{removed}"
