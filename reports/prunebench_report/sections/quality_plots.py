"""Quality against what was pruned, speed, memory and size: plots, and each one in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunebench_report.data.columns import Row
from prunebench_report.data.gate import PERPLEXITY_RECOVERY, quality_key
from prunebench_report.data.groups import by_model
from prunebench_report.data.names import short_name
from prunebench_report.data.pareto import frontier, settled_speedup
from prunebench_report.data.seeds import seed_deviation
from prunebench_report.data.speed import contended
from prunebench_report.figures.axes import Frame
from prunebench_report.figures.plot import Panel, Point
from prunebench_report.figures.scatter import beyond, draw
from prunebench_report.figures.svg import Figure, LegendEntry, plot
from prunebench_report.sections.sparsity_plot import sparsity_figure
from prunebench_report.text import TIMES, clean, number

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench_report.data.report_input import ReportInput

SPEED = Panel(
    caption="Quality against speed",
    x="inter_token_speedup",
    y=PERPLEXITY_RECOVERY,
    x_label=f"Speed-up per generated token, {TIMES} dense",
    y_label="Recovery of dense quality, %",
    x_better=1,
    y_better=1,
    x_least=0.1,
    gated=True,
)
MEMORY = Panel(
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


# Values of x that differ by less, relatively, would be one vertical line of marks.
_SAME = 0.005


@dataclass(frozen=True)
class ModelFigures:
    """The plots of one model; ``model`` is None if there is only one."""

    model: str | None
    figures: tuple[Figure, ...]
    legend: tuple[LegendEntry, ...]
    notes: tuple[str, ...]
    """Which plots would show nothing, and why."""


def section(given: ReportInput) -> list[ModelFigures]:
    return figures(given.results, given.gate, given.methods, given.record_by_id)


def figures(
    rows: Sequence[Row],
    gate: float,
    methods: Sequence[str],
    records: Mapping[str, Record],
) -> list[ModelFigures]:
    """For each model the plots that have a pruned cell to draw.

    The same method has the same mark in every plot: its place in ``methods``.
    """
    groups = by_model(rows)
    found = []
    for model, members in groups.items():
        done = [row for row in members if row["status"] == "ok"]
        panels = _panels(done)
        drawn, notes = [], []
        first = replace(panels[0], caption="Quality against what is pruned")
        if one := sparsity_figure(first, done, records, methods, gate):
            drawn.append(one)
        for panel in panels:
            points = [point for row in done if (point := _point(row, panel))]
            if all(point.method == "dense" for point in points):
                continue
            if reason := _nothing_to_see(panel, points):
                notes.append(reason)
                continue
            drawn.append(_figure(panel, points, methods, gate))
        if drawn or notes:
            heading = clean(model) if len(groups) > 1 else None
            shown = dict.fromkeys(row["method"] for row in done if row["method"] != "dense")
            # The first plot has a legend of its own.
            scattered = any(not one.legend for one in drawn)
            legend = tuple(LegendEntry(clean(one), methods.index(one)) for one in shown)
            found.append(
                ModelFigures(heading, tuple(drawn), legend if scattered else (), tuple(notes))
            )
    return found


def _panels(done: Sequence[Row]) -> tuple[Panel, ...]:
    """What is drawn for the cells of one model."""
    judged = next((quality_key(row) for row in done if row["method"] != "dense"), SPEED.y)
    speed, memory = SPEED, MEMORY
    if judged != SPEED.y:
        label = "Mean recovery over tasks, %"
        speed = replace(speed, y=judged, y_label=label)
        memory = replace(memory, y=judged, y_label=label)
    if not any(row["method"] != "dense" and _point(row, speed) for row in done):
        # Recovery may be known without a speed-up.
        known = any(row["method"] != "dense" and row.get(speed.y) is not None for row in done)
        return (memory, TIME, SIZE) if known else (TIME, SIZE)
    if any(row.get("generate_gpu_bytes") is not None for row in done):
        memory = replace(
            memory, x="generate_gpu_bytes", x_label="Allocated on the GPU while generating, MB"
        )
    return speed, memory, SIZE


def _nothing_to_see(panel: Panel, points: Sequence[Point]) -> str | None:
    """Why a plot would be one vertical line of marks; None if it would not."""
    xs = [point.x for point in points]
    low, high = min(xs), max(xs)
    if high - low <= _SAME * high:
        name, _, unit = panel.x_label.rpartition(", ")
        return f"{panel.caption} is not drawn, because all cells are alike: {name} {number(high)} {unit}."
    sound = [point for point in points if not point.contended and point.method != "dense"]
    flat = all(point.x_settled == 1.0 for point in sound)
    if panel.x == "inter_token_speedup" and sound and flat:
        return (
            f"{panel.caption} is not drawn, because no speed-up differs measurably from 1 "
            f"({low:.2f}{TIMES} to {high:.2f}{TIMES})."
        )
    return None


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
        short=short_name(row),
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
    named = best if len(points) > MOST else None
    frame, body = draw(panel, shown, methods, gate, best, named)
    svg = plot(panel.caption, desc, frame.height, body)
    return Figure(panel.caption, desc, svg, _beyond(frame, points))


def _beyond(frame: Frame, points: Sequence[Point]) -> tuple[str, ...]:
    """What is drawn at the edge because an axis ends before it."""
    far = [point for point in points if beyond(frame, point)]
    if not far:
        return ()
    parts = [
        f"{point.name} ({number(point.y if frame.y.beyond(point.y) else point.x)})"
        for point in far[:_MOST_NAMED]
    ]
    more = f" and {len(far) - _MOST_NAMED} more" if len(far) > _MOST_NAMED else ""
    return (f"Beyond the axis, drawn at its edge: {', '.join(parts)}{more}.",)


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
