"""Draws memory over time: a colour for each phase, hatched if the model is not alone in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from prunebench.record.memory import NOT_THE_MODEL_ALONE
from prunebench_report.figures.axes import Frame
from prunebench_report.figures.path_data import polyline
from prunebench_report.figures.scale import linear
from prunebench_report.figures.svg import (
    MARKS,
    UNITS,
    Figure,
    percent,
    placed,
    plain,
    plot,
)
from prunebench_report.text import clean, seconds, size

if TYPE_CHECKING:
    from prunebench.record.memory import Memory, PhaseSpan, Timeline
    from prunebench.record.record import Record

HEIGHT = 120.0
_STEP = 2
"""Units for which the highest sample is drawn: more points would only make the file larger."""
_STYLES = ("", " dashed", " dotted")


@dataclass(frozen=True)
class Ends:
    """The ends of the axes: seconds and bytes."""

    time_s: float
    bytes: float


def drawable(memory: Timeline | None) -> TypeGuard[Timeline]:
    """Whether there are at least two samples."""
    return (
        memory is not None
        and len(memory.time_s) >= 2
        and len(memory.time_s) == len(memory.rss_bytes)
    )


def ends_of(lines: Sequence[Timeline]) -> Ends:
    """Axes on which all of these have room."""
    # The lines of the GPU are on the same axis as the resident set.
    values = (value for line in lines for series in _series(line).values() for value in series)
    return Ends(max(map(_end, lines)) or 1.0, max(values, default=0) or 1)


def phase_colours(lines: Iterable[Timeline]) -> dict[str, int]:
    """A number for each phase, in order of appearance; the same phase has one colour everywhere."""
    names = dict.fromkeys(span.phase for line in lines for span in line.phases)
    return {name: index for index, name in enumerate(names)}


def phase_legend(colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """What the template shows of each phase: name, classes of its colour, and whether hatched."""
    return [
        {"name": clean(name), "kind": _kind(index), "hatched": name in NOT_THE_MODEL_ALONE}
        for name, index in colours.items()
    ]


def peak(record: Record) -> str | None:
    """'peak 1.73 GB in perplexity': the peak of the table and its phase."""
    memory = record.memory
    if memory is None or memory.peak_rss_bytes is None:
        return None
    phase = _phase_of(memory)
    return clean(f"peak {size(memory.peak_rss_bytes)}" + (f" in {phase}" if phase else ""))


def _phase_of(memory: Memory) -> str | None:
    known = [
        (one.peak_rss_bytes, one.phase)
        for one in memory.phases
        if one.peak_rss_bytes is not None and one.phase not in NOT_THE_MODEL_ALONE
    ]
    return max(known, key=lambda one: one[0])[1] if known else None


def timeline(
    caption: str,
    memory: Timeline,
    ends: Ends,
    colours: Mapping[str, int],
    height: float = HEIGHT,
) -> Figure:
    """One cell on the axes ``ends``."""
    unit, name = (1e9, "GB") if ends.bytes >= 1e9 else (1e6, "MB")
    frame = Frame(
        linear(0.0, ends.time_s),
        linear(0.0, 1.04 * ends.bytes / unit),
        "Seconds since the cell began",
        f"Resident set, {name}",
        height=height,
    )
    bands = "".join(_band(span, ends.time_s, colours) for span in memory.phases)
    drawn = "".join(
        f'<path class="memory{style}" d="{_path(memory.time_s, values, frame, unit)}"/>'
        for values, style in zip(_series(memory).values(), _STYLES, strict=False)
    )
    # No description in the plot: the tooltips of the phases have the same words.
    words = "; ".join(_words(span) for span in memory.phases)
    svg = plot(caption, "", height, [bands, frame.draw(drawn)])
    return Figure(caption, words, svg)


def _band(span: PhaseSpan, end: float, colours: Mapping[str, int]) -> str:
    """The time of a phase: a pale band, and a strip of the full colour at its foot."""
    # A phase may end after the last sample.
    left, right = (min(max(time / end, 0.0), 1.0) for time in (span.start_s, span.end_s))
    across = f'{placed(x=percent(left))} width="{percent(max(0.0, right - left))}"'
    # The band and the strip: the style has their sizes, in per cent of this inner viewport.
    rects = "<rect/><rect/>"
    if span.phase in NOT_THE_MODEL_ALONE:
        rects += '<rect class="hatched"/>'
    kind, title = _kind(colours[span.phase]), plain(_words(span))
    return f'<svg class="phase {kind}"{across}><title>{title}</title>{rects}</svg>'


def _kind(index: int) -> str:
    # Eight colours, then the same ones pale.
    return f"c{index % MARKS}{' pale' if index >= MARKS else ''}"


def _words(span: PhaseSpan) -> str:
    return f"{span.phase}: {seconds(span.end_s - span.start_s)} from {seconds(span.start_s)}"


def _series(memory: Timeline) -> dict[str, list[int]]:
    series = {"resident set": memory.rss_bytes}
    if memory.gpu_bytes and len(memory.gpu_bytes) == len(memory.time_s):
        series["GPU memory of the process"] = memory.gpu_bytes
    if memory.gpu_device_bytes and len(memory.gpu_device_bytes) == len(memory.time_s):
        series["GPU memory of all processes"] = memory.gpu_device_bytes
    return series


def _end(memory: Timeline) -> float:
    return max([memory.time_s[-1], *(span.end_s for span in memory.phases)])


def _path(times: Sequence[float], values: Sequence[int], frame: Frame, unit: float) -> str:
    """An SVG path through the points.

    Of the samples in one step the highest is drawn, so that no peak is lost; points inside a
    level stretch are left out.
    """
    # A timeline has hundreds of samples, a report many timelines.
    highest: dict[int, int] = {}
    for time, value in zip(times, values, strict=True):
        across, down = frame.at(time, value / unit)
        step = _STEP * round(UNITS * across / _STEP)
        highest[step] = min(highest.get(step, round(down)), round(down))  # y grows downwards
    points: list[tuple[int, int]] = []
    for point in highest.items():
        if len(points) > 1 and points[-1][1] == points[-2][1] == point[1]:
            points[-1] = point  # the line stays level, so extend it
        else:
            points.append(point)
    return polyline(points)
