"""The map of what is gone in one cell: layers along x, linears along y."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from prunebench_report.figures.path_data import shortest
from prunebench_report.text import percent

if TYPE_CHECKING:
    from prunebench.record.audit import Audit, LinearAudit

_ROW_HEIGHT = 17.25
"""In pixels."""


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


_Row = Mapping[int, _Square]
"""The squares of one linear by layer."""


def heatmap(audit: Audit) -> dict[str, Any] | None:
    """Geometry for the template, in layers along x and rows along y; None without linears.

    Neighbouring squares with the same share become one rectangle, and the linears of one module
    share a tooltip, so that the map stays small.
    """
    squares: dict[str, dict[int, _Square]] = {}
    for one in sorted(audit.linears, key=lambda linear: linear.layer):
        squares.setdefault(one.name, {})[one.layer] = _square(one)
    # In the order in which a layer has them
    rows = {name: squares[name] for name in dict.fromkeys(one.name for one in audit.linears)}
    # Rectangles are placed by the index of their layer in the dense model.
    total = max([audit.layers_dense, *(linear.layer + 1 for linear in audit.linears)])
    if not rows or not total:
        return None
    ranges = {name: _range(row) for name, row in rows.items()}
    return {
        "layers": total,
        "height_px": len(rows) * _ROW_HEIGHT,
        "rows": [
            {"name": name, "mean": percent(_mean_share(row.values())), "range": ranges[name]}
            for name, row in rows.items()
        ],
        "blocks": _blocks(rows),
        "removed": _removed(audit, list(rows)),
        "grid": _grid(total, len(rows)),
        "title": "Weights that are zero or cut off, by layer and linear",
        "desc": _describe(audit, ranges),
    }


def _range(row: _Row) -> str:
    low = percent(min(square.share for square in row.values()))
    high = percent(max(square.share for square in row.values()))
    return low if low == high else f"{low} to {high}"


def _mean_share(squares: Iterable[_Square]) -> float | None:
    known = list(squares)
    gone, weights = sum(one.gone for one in known), sum(one.weights for one in known)
    return gone / weights if weights else None


def _blocks(rows: Mapping[str, _Row]) -> list[dict[str, Any]]:
    """The linears of one module in one layer, or in neighbouring layers that print alike."""
    blocks, y = [], 0
    for module, names in groupby(rows, key=lambda name: name.rpartition(".")[0]):
        members = {name.rpartition(".")[2]: rows[name] for name in names}
        blocks += [_block(module, members, layers, y) for layers in _runs(members)]
        y += len(members)
    return blocks


def _runs(members: Mapping[str, _Row]) -> list[list[int]]:
    """Consecutive layers that have the same linears, whose shares print alike."""
    layers = sorted({layer for row in members.values() for layer in row})

    def printed(layer: int) -> list[str]:
        return [percent(row[layer].share) if layer in row else "" for row in members.values()]

    # layer - index is constant as long as no layer is missing in between.
    keyed = [(layer, layer - index) for index, layer in enumerate(layers)]
    return [
        [layer for layer, _ in run]
        for _, run in groupby(keyed, key=lambda pair: (pair[1], printed(pair[0])))
    ]


def _block(module: str, members: Mapping[str, _Row], layers: list[int], y: int) -> dict[str, Any]:
    shares = {
        name: _mean_share(row[layer] for layer in layers) or 0.0
        for name, row in members.items()
        if layers[0] in row
    }
    first, last = layers[0], layers[-1]
    where = f"layer {first}" if first == last else f"layers {first} to {last}"
    what = ", ".join(f"{name} {percent(share)}" for name, share in shares.items())
    return {
        "x": first,
        "y": y,
        "width": last - first + 1,
        "title": f"{where}{', ' + module if module else ''}: {what}",
        "rects": _rects([shares.get(name) for name in members]),
    }


def _rects(shares: Sequence[float | None]) -> list[dict[str, Any]]:
    """Rows of a block that print alike as one rectangle; None is a linear that is not there."""
    rects, y = [], 0
    for _, run in groupby(shares, key=percent):
        alike = list(run)
        if alike[0] is not None:
            # The opacity; the title has the third digit.
            rects.append({"y": y, "height": len(alike), "shade": shortest(alike[0], 2)})
        y += len(alike)
    return rects


def _removed(audit: Audit, names: list[str]) -> list[dict[str, Any]]:
    """What to cross out: columns for layers, the rows of their linears for attentions and MLPs."""
    whole = [
        {"x": layer, "y": 0, "height": len(names), "title": f"layer {layer} removed"}
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
                    "y": missing[0],
                    "height": missing[-1] - missing[0] + 1,
                    "title": f"layer {layer}: {kind} removed",
                }
            )
    return whole + parts


def _grid(layers: int, rows: int) -> dict[str, str]:
    """The lines between layers and between rows; maps of one shape share one path of the page."""
    upright = "".join(f"M{layer} 0v{rows}" for layer in range(1, layers))
    level = "".join(f"M0 {row}h{layers}" for row in range(1, rows))
    return {"id": f"grid-{layers}-{rows}", "path": upright + level}


def _describe(audit: Audit, ranges: Mapping[str, str]) -> str:
    parts = "; ".join(f"{name} {shares}" for name, shares in ranges.items())
    gone = ", ".join(map(str, audit.removed_layers))
    removed = f" Removed layers: {gone}." if gone else " No layer is removed."
    if audit.removed_blocks:
        removed += f" Removed attentions and MLPs: {', '.join(audit.removed_blocks)}."
    layers = f"{len(audit.kept_layers)} of {audit.layers_dense} layers"
    return f"Share of weights that are zero or cut off, over {layers}: {parts}.{removed}"
