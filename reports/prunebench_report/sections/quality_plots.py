"""Quality against speed and size: which scatter plots a run has, and what each says in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunebench_report.data.seeds import spread
from prunebench_report.data.table import Row, by_model
from prunebench_report.figures.pareto import frontier, settled_speedup
from prunebench_report.figures.plot import Panel, Point
from prunebench_report.figures.scatter import draw
from prunebench_report.figures.svg import inline
from prunebench_report.sections.tasks import quality_key
from prunebench_report.text import TIMES, brief, number

SPEED = Panel(
    "speed",
    "Quality against speed",
    "inter_token_speedup",
    "recovery_percent",
    f"Speed-up per generated token, {TIMES} dense",
    "Recovery of dense quality, %",
    1,
    1,
    gated=True,
)
TIME = Panel(
    "speed",
    "Quality against speed",
    "inter_token_p50_s",
    "perplexity",
    "Time between tokens, ms",
    "Perplexity (log)",
    -1,
    -1,
    1e3,
    log_y=True,
)
SIZE = Panel(
    "size",
    "Quality against size",
    "disk_bytes",
    "perplexity",
    "Size on disk, MB",
    "Perplexity (log)",
    -1,
    -1,
    1e-6,
    log_y=True,
)

MEMORY = Panel(
    "memory",
    "Quality against memory",
    "memory_bytes",
    "recovery_percent",
    "Weights in memory, MB",
    "Recovery of dense quality, %",
    -1,
    1,
    1e-6,
    gated=True,
)

MOST = 60
"""Points in a plot beyond which dominated ones are thinned out and only those on the frontier are named."""

_TOLD = 30
_DRAWABLE = 1e30
"""What lies beyond stands in the table only; an axis that reached it would show nothing else."""


def figures(table: Sequence[Row], gate: float) -> list[dict[str, str]]:
    """For each model of the table, quality against speed and against size, where there is anything to draw."""
    groups = by_model(table)
    methods = list(dict.fromkeys(row["method"] for row in table if row["method"] != "dense"))
    drawn = []
    for number_, (model, rows) in enumerate(groups.items()):
        done = [row for row in rows if row["status"] == "ok"]
        judged = next((quality_key(row) for row in done if row["method"] != "dense"), SPEED.y)
        speed = (
            SPEED
            if judged == SPEED.y
            else replace(SPEED, y=judged, y_label="Mean recovery over tasks, %")
        )
        relative = any(row["method"] != "dense" and _point(row, speed) for row in done)
        whole = any(row.get("generate_gpu_bytes") is not None for row in done)
        memory = replace(
            MEMORY,
            y=speed.y,
            y_label=speed.y_label,
            x="generate_gpu_bytes" if whole else MEMORY.x,
            x_label="Allocated on the GPU while generating, MB" if whole else MEMORY.x_label,
        )
        for panel in (speed, memory, SIZE) if relative else (TIME, SIZE):
            points = [point for row in done if (point := _point(row, panel))]
            if any(point.method != "dense" for point in points):
                prefix = f"{panel.key}{number_}"
                caption = f"{panel.caption}, {model}" if len(groups) > 1 else panel.caption
                drawn.append(
                    _figure(
                        panel, points, methods=methods, gate=gate, prefix=prefix, caption=caption
                    )
                )
    return drawn


def _point(row: Row, panel: Panel) -> Point | None:
    x, y = row.get(panel.x), row.get(panel.y)
    if (
        x is None
        or y is None
        or not 0 < x < _DRAWABLE
        or not (0 if panel.log_y else -1) < y < _DRAWABLE
    ):
        return None
    settled = settled_speedup(row) if panel.x == "inter_token_speedup" else x
    return Point(
        row["cell"],
        row["name"],
        row["method"],
        brief(row["label"]),
        x * panel.x_factor,
        y,
        (x if settled is None else settled) * panel.x_factor,
        _range(row, panel.x, panel.x_factor),
        _range(row, panel.y, 1.0),
    )


def _range(row: Row, key: str, factor: float) -> tuple[float, float] | None:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None and (deviation := spread(row, key)) is not None:
        low, high = row[key] - deviation, row[key] + deviation
    return None if low is None or high is None else (low * factor, high * factor)


def _figure(
    panel: Panel,
    points: Sequence[Point],
    *,
    methods: Sequence[str],
    gate: float,
    prefix: str,
    caption: str,
) -> dict[str, str]:
    on = frontier([(panel.x_better * p.x_settled, panel.y_better * p.y) for p in points])
    best = {points[index].cell for index in on}
    desc = _describe(panel, points, best)
    shown = _thinned(points, best)
    if len(shown) < len(points):
        caption += f", {len(shown)} of {len(points)} cells drawn"
    drawn = draw(panel, shown, methods, gate, best, named=best if len(points) > MOST else None)
    return {
        "id": prefix,
        "caption": caption,
        "desc": desc,
        "svg": inline(*drawn, shown, panel, prefix=prefix, caption=caption, desc=desc),
    }


def _thinned(points: Sequence[Point], best: set[str]) -> list[Point]:
    """All points of a small run; of a large one dense, the frontier, and dominated ones, at even steps of their order."""
    if len(points) <= MOST:
        return list(points)
    front = [index for index, p in enumerate(points) if p.cell in best]
    behind = [index for index, p in enumerate(points) if p.cell not in best and p.method != "dense"]
    kept = {index for index, p in enumerate(points) if p.method == "dense"}
    kept |= _even(front, MOST * 2 // 3)
    kept |= _even(behind, max(1, MOST - len(kept)))
    return [p for index, p in enumerate(points) if index in kept]


def _even(indices: Sequence[int], most: int) -> set[int]:
    """At most so many of them, the first and the last among them."""
    if len(indices) <= most:
        return set(indices)
    return {indices[round(step * (len(indices) - 1) / max(1, most - 1))] for step in range(most)}


def _describe(panel: Panel, points: Sequence[Point], best: set[str]) -> str:
    xs, ys = [p.x for p in points], [p.y for p in points]
    front = [p.name for p in sorted(points, key=lambda p: p.x) if p.cell in best]
    names = ", ".join(front[:_TOLD]) + (
        f" and {len(front) - _TOLD} more" if len(front) > _TOLD else ""
    )
    return (
        f"{len(points)} cells. {panel.x_label} from {number(min(xs))} to {number(max(xs))}; "
        f"{panel.y_label} from {number(min(ys))} to {number(max(ys))}. Not dominated: {names}."
    )
