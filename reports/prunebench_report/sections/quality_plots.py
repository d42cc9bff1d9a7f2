"""Quality against speed, memory and size: the scatter plots of a run, and each one in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row
from prunebench_report.data.gate import PERPLEXITY_RECOVERY, quality_key
from prunebench_report.data.groups import by_model
from prunebench_report.data.pareto import frontier, settled_speedup
from prunebench_report.data.seeds import seed_deviation
from prunebench_report.data.speed import contended
from prunebench_report.figures.plot import Panel, Point
from prunebench_report.figures.scatter import draw
from prunebench_report.figures.svg import inline
from prunebench_report.text import TIMES, number, short_label

if TYPE_CHECKING:
    from prunebench_report.data.report_input import ReportInput

SPEED = Panel(
    key="speed",
    caption="Quality against speed",
    x="inter_token_speedup",
    y=PERPLEXITY_RECOVERY,
    x_label=f"Speed-up per generated token, {TIMES} dense",
    y_label="Recovery of dense quality, %",
    x_better=1,
    y_better=1,
    gated=True,
)
MEMORY = Panel(
    key="memory",
    caption="Quality against memory",
    x="memory_bytes",
    y=PERPLEXITY_RECOVERY,
    x_label="Weights in memory, MB",
    y_label="Recovery of dense quality, %",
    x_better=-1,
    y_better=1,
    x_factor=1e-6,
    gated=True,
)
# Without a dense cell nothing is relative: times and perplexities stand for themselves.
TIME = Panel(
    key="speed",
    caption="Quality against speed",
    x="inter_token_p50_s",
    y="perplexity",
    x_label="Inter-token latency, ms",
    y_label="Perplexity (log)",
    x_better=-1,
    y_better=-1,
    x_factor=1e3,
    log_y=True,
)
SIZE = Panel(
    key="size",
    caption="Quality against size",
    x="disk_bytes",
    y="perplexity",
    x_label="Size on disk, MB",
    y_label="Perplexity (log)",
    x_better=-1,
    y_better=-1,
    x_factor=1e-6,
    log_y=True,
)

MOST = 60
"""With more points, dominated ones are thinned out and only those on the frontier are named."""

_MOST_NAMED = 30
# Larger values are in the table only; an axis that reached them would show nothing else.
_DRAWABLE = 1e30


@dataclass(frozen=True)
class Figure:
    """A plot in the page: ``desc`` says in words what it shows."""

    id: str
    caption: str
    desc: str
    svg: str


def section(given: ReportInput) -> list[Figure]:
    return figures(given.results, given.gate)


def figures(rows: Sequence[Row], gate: float) -> list[Figure]:
    """For each model the plots that have a pruned cell to draw."""
    groups = by_model(rows)
    # The same method has the same mark in every plot.
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"))
    drawn = []
    for index, (model, members) in enumerate(groups.items()):
        done = [row for row in members if row["status"] == "ok"]
        for panel in _panels(done):
            points = [point for row in done if (point := _point(row, panel))]
            if all(point.method == "dense" for point in points):
                continue
            caption = f"{panel.caption}, {model}" if len(groups) > 1 else panel.caption
            named = replace(panel, key=f"{panel.key}{index}", caption=caption)
            drawn.append(_figure(named, points, methods, gate))
    return drawn


def _panels(done: Sequence[Row]) -> tuple[Panel, ...]:
    """What is drawn for the cells of one model."""
    judged = next((quality_key(row) for row in done if row["method"] != "dense"), SPEED.y)
    speed, memory = SPEED, MEMORY
    if judged != SPEED.y:
        label = "Mean recovery over tasks, %"
        speed = replace(speed, y=judged, y_label=label)
        memory = replace(memory, y=judged, y_label=label)
    if not any(row["method"] != "dense" and _point(row, speed) for row in done):
        return TIME, SIZE
    if any(row.get("generate_gpu_bytes") is not None for row in done):
        memory = replace(
            memory, x="generate_gpu_bytes", x_label="Allocated on the GPU while generating, MB"
        )
    return speed, memory, SIZE


_TIMED = {"inter_token_speedup", "inter_token_p50_s"}


def _point(row: Row, panel: Panel) -> Point | None:
    """None if a value is missing or cannot be drawn on the panel's axes."""
    x, y = row.get(panel.x), row.get(panel.y)
    if x is None or y is None:
        return None
    # A logarithmic axis has no zero; on a linear one a recovery may be 0 %.
    if not 0 < x < _DRAWABLE or not (0 if panel.log_y else -1) < y < _DRAWABLE:
        return None
    settled = settled_speedup(row) if panel.x == "inter_token_speedup" else x
    return Point(
        cell=row["cell"],
        name=row["name"],
        method=row["method"],
        short=short_label(row["label"]),
        x=x * panel.x_factor,
        y=y,
        x_settled=(x if settled is None else settled) * panel.x_factor,
        x_range=_range(row, panel.x, panel.x_factor),
        y_range=_range(row, panel.y, 1.0),
        contended=panel.x in _TIMED and contended(row),
    )


def _range(row: Row, key: str, factor: float) -> tuple[float, float] | None:
    """The interval of a value, or mean - deviation to mean + deviation over seeds."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None and (deviation := seed_deviation(row, key)) is not None:
        low, high = row[key] - deviation, row[key] + deviation
    return None if low is None or high is None else (low * factor, high * factor)


def _figure(panel: Panel, points: Sequence[Point], methods: Sequence[str], gate: float) -> Figure:
    # What others slowed down or did not is no evidence of a trade-off.
    sound = [point for point in points if not point.contended]
    on = frontier([(panel.x_better * p.x_settled, panel.y_better * p.y) for p in sound])
    best = {sound[index].cell for index in on}
    desc = _describe(panel, points, best)
    shown = _thinned(points, best)
    if len(shown) < len(points):
        caption = f"{panel.caption}, {len(shown)} of {len(points)} cells drawn"
        panel = replace(panel, caption=caption)
    svg, texts = draw(panel, shown, methods, gate, best, named=best if len(points) > MOST else None)
    return Figure(panel.key, panel.caption, desc, inline(svg, texts, shown, panel, desc))


def _thinned(points: Sequence[Point], best: set[str]) -> list[Point]:
    """All points of a small run; of a large one dense, most of the frontier, and some dominated."""
    if len(points) <= MOST:
        return list(points)
    front = [index for index, p in enumerate(points) if p.cell in best]
    behind = [index for index, p in enumerate(points) if p.cell not in best and p.method != "dense"]
    kept = {index for index, p in enumerate(points) if p.method == "dense"}
    kept |= _even(front, MOST * 2 // 3)
    kept |= _even(behind, max(1, MOST - len(kept)))
    return [p for index, p in enumerate(points) if index in kept]


def _even(indices: Sequence[int], most: int) -> set[int]:
    """At most ``most`` of the indices at even steps, the first and the last among them."""
    if len(indices) <= most:
        return set(indices)
    return {indices[round(step * (len(indices) - 1) / max(1, most - 1))] for step in range(most)}


def _describe(panel: Panel, points: Sequence[Point], best: set[str]) -> str:
    xs, ys = [p.x for p in points], [p.y for p in points]
    front = [p.name for p in sorted(points, key=lambda p: p.x) if p.cell in best]
    names = ", ".join(front[:_MOST_NAMED])
    if len(front) > _MOST_NAMED:
        names += f" and {len(front) - _MOST_NAMED} more"
    return (
        f"{len(points)} cells. {panel.x_label} from {number(min(xs))} to {number(max(xs))}; "
        f"{panel.y_label} from {number(min(ys))} to {number(max(ys))}. Not dominated: {names}."
    )
