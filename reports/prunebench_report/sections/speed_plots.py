"""Latency and throughput over batch size and prompt length: a line for each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunebench_report.data.groups import models_with
from prunebench_report.data.selection import some_of_every_method
from prunebench_report.data.speed import stored_latencies
from prunebench_report.figures.axes import Better, Frame
from prunebench_report.figures.lines import DASHES, Series, Vertex, draw, legend
from prunebench_report.figures.scale import doubling, log_around
from prunebench_report.figures.svg import DENSE, Figure, plot
from prunebench_report.text import clean, number, short_label

if TYPE_CHECKING:
    from prunebench.record.record import Record
    from prunebench.record.speed import Latency
    from prunebench_report.data.report_input import ReportInput

MOST_LINES = 8


@dataclass(frozen=True)
class _Axis:
    """What varies from shape to shape, and what stays the same."""

    name: str
    label: str
    of: Callable[[Latency], int]
    fixed: Callable[[Latency], tuple[int, int]]
    words: Callable[[Latency], str]


@dataclass(frozen=True)
class _Measure:
    name: str
    label: str
    better: Better
    of: Callable[[Latency], float | None]


_BATCH = _Axis(
    "batch size",
    "Batch size",
    lambda one: one.batch_size,
    lambda one: (one.prompt, one.new_tokens),
    lambda one: f"prompt {one.prompt}, {one.new_tokens} new tokens",
)
_PROMPT = _Axis(
    "prompt length",
    "Prompt, tokens",
    lambda one: one.prompt,
    lambda one: (one.batch_size, one.new_tokens),
    lambda one: f"batch {one.batch_size}, {one.new_tokens} new tokens",
)
_TTFT = _Measure(
    "TTFT", "TTFT, ms (log)", -1, lambda one: 1000 * one.ttft_s.median if one.ttft_s else None
)
_BETWEEN = _Measure(
    "Inter-token latency",
    "Inter-token latency, ms (log)",
    -1,
    lambda one: 1000 * one.inter_token_s.median if one.inter_token_s else None,
)
_THROUGHPUT = _Measure("Throughput", "Tokens/s (log)", 1, lambda one: one.tokens_per_s)


def section(given: ReportInput) -> list[dict[str, Any]]:
    """For each model that was timed at several shapes, the plots; empty if none was."""
    found = []
    for model, members in models_with(given.detailed, stored_latencies):
        # One choice of cells for all plots of a model
        shown = some_of_every_method(members, MOST_LINES)
        figures = [
            one
            for axis in (_BATCH, _PROMPT)
            for measure in (_TTFT, _BETWEEN, _THROUGHPUT)
            if (one := _figure(axis, measure, shown, given))
        ]
        if figures:
            left_out = len(members) - len(shown)
            # All plots have the same lines: one legend is enough.
            shared = {"legend": figures[0].legend, "left_out": left_out}
            bare = [replace(one, legend=()) for one in figures]
            found.append({"model": model, "figures": bare, **shared})
    return found


def _figure(
    axis: _Axis,
    measure: _Measure,
    members: Sequence[Record],
    given: ReportInput,
) -> Figure | None:
    """None if nothing was timed at two values of the axis with the rest alike."""
    every = [one for record in members for one in stored_latencies(record)]
    values: dict[tuple[int, int], set[int]] = {}
    for one in every:
        values.setdefault(axis.fixed(one), set()).add(axis.of(one))
    # The shapes with the most values on this axis; the first of several such.
    fixed = max(values, key=lambda key: len(values[key]), default=(0, 0))
    if len(values.get(fixed, ())) < 2:
        return None
    series, seen = [], dict[str, int]()
    for record in members:
        timed = [one for one in stored_latencies(record) if axis.fixed(one) == fixed]
        label, method = short_label(given.names[record.id]), record.cell.method.name
        points = sorted((axis.of(one), y) for one in timed if (y := measure.of(one)))
        vertices = tuple(
            Vertex(
                x,
                y,
                f"{given.names[record.id]}: {axis.label} {x}, {measure.name} {number(y)}",
                cell=record.id,
            )
            for x, y in points
        )
        if vertices:
            mark = DENSE if method == "dense" else given.methods.index(method)
            dashes = seen.get(method, 0) % DASHES
            seen[method] = seen.get(method, 0) + 1
            series.append(Series(clean(label), mark, vertices, dashes))
    if not series:
        return None
    # Doubling sizes call for a logarithmic axis, and times then follow straight lines.
    ys = [vertex.y for one in series for vertex in one.vertices]
    frame = Frame(
        doubling(values[fixed]), log_around(ys), axis.label, measure.label, 0, measure.better
    )
    alike = next(axis.words(one) for one in every if axis.fixed(one) == fixed)
    caption = f"{measure.name} over {axis.name}: {alike}"
    desc = " ".join(
        f"{one.name}: {', '.join(f'{number(v.y)} at {v.x:g}' for v in one.vertices)}."
        for one in series
    )
    svg = plot(caption, desc, frame.height, draw(frame, series))
    return Figure(caption, desc, svg, (), legend(series))
