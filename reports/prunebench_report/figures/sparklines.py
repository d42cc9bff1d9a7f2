"""Geometry of the small graphics of a card, for the template to draw: timeline, strips and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from prunebench_report.figures.scale import nice
from prunebench_report.text import number, percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.memory import PhaseSpan, Timeline
    from prunebench.record.record import PhaseTime
    from prunebench.record.speed import LatencySamples

WIDTH = 640
_HEIGHT = 120
_STYLES = ("", "dashed", "dotted")

_STRIP_HEIGHT = 34
# More samples than this are drawn as every second, third, ... one.
_MOST_TICKS = 160


def drawable(memory: Timeline | None) -> TypeGuard[Timeline]:
    """Whether there are at least two samples."""
    return (
        memory is not None
        and len(memory.time_s) >= 2
        and len(memory.time_s) == len(memory.rss_bytes)
    )


def timeline(
    memory: Timeline | None,
    *,
    beside: Sequence[Timeline] = (),
    width: int = WIDTH,
    height: int = _HEIGHT,
) -> dict[str, Any] | None:
    """Memory over time, with the phases as bands; None if it is not drawable.

    The axes also have room for the timelines ``beside``, so that pictures can be compared.
    """
    if not drawable(memory):
        return None
    together = [memory, *beside]
    end = max(_end(one) for one in together) or 1.0
    ceiling = max(max(values) for one in together for values in _series(one).values()) or 1
    step = nice(ceiling / 3)  # three or four levels
    top = step * math.ceil(ceiling / step)
    bands = [_band(span, index, end, width) for index, span in enumerate(memory.phases)]
    return {
        "width": width,
        "height": height,
        "bands": bands,
        "lines": [
            {
                "name": name,
                "path": _path(memory.time_s, values, (end, width), (top, height)),
                "style": style,
            }
            for (name, values), style in zip(_series(memory).items(), _STYLES, strict=False)
        ],
        "levels": [
            {
                "y": round(height * (1 - level * step / top), 1),
                "text": size(level * step) if level else "0",
            }
            for level in range(round(top / step) + 1)
        ],
        "times": [
            {"x": round(width * share), "text": seconds(end * share) if share else "0"}
            for share in (0, 0.5, 1)
        ],
        "title": f"Memory over {seconds(_end(memory))}, "
        f"peak resident set {size(max(memory.rss_bytes))}",
        "desc": f"Phases: {'; '.join(str(band['title']) for band in bands)}.",
    }


def _band(span: PhaseSpan, index: int, end: float, width: int) -> dict[str, Any]:
    left, right = width * span.start_s / end, width * min(span.end_s, end) / end
    room = right - left > 7 * len(span.phase) + 6  # pixels per character, and a margin
    duration, start = seconds(span.end_s - span.start_s), seconds(span.start_s)
    return {
        "x": round(left, 1),
        "width": round(max(0.0, right - left), 1),
        "odd": index % 2 == 1,
        "label": span.phase if room else "",
        "title": f"{span.phase}: {duration} from {start}",
    }


def _series(memory: Timeline) -> dict[str, list[int]]:
    series = {"resident set": memory.rss_bytes}
    if memory.gpu_bytes and len(memory.gpu_bytes) == len(memory.time_s):
        series["GPU memory of the process"] = memory.gpu_bytes
    if memory.gpu_device_bytes and len(memory.gpu_device_bytes) == len(memory.time_s):
        series["GPU memory of all processes"] = memory.gpu_device_bytes
    return series


def _end(memory: Timeline) -> float:
    return max([memory.time_s[-1], *(span.end_s for span in memory.phases)])


def _path(
    times: Sequence[float],
    values: Sequence[int],
    across: tuple[float, int],
    upwards: tuple[float, int],
) -> str:
    """An SVG path through the points; ``across`` and ``upwards`` are (largest value, pixels).

    Points on the same pixel as the one before, or inside a level stretch, are left out.
    """
    (end, width), (top, height) = across, upwards
    # Whole pixels and no redundant points: a timeline has hundreds of samples, a report many
    # timelines.
    points: list[tuple[int, int]] = []
    for time, value in zip(times, values, strict=True):
        point = round(width * min(max(time / end, 0), 1)), round(height * (1 - value / top))
        if points[-1:] == [point]:
            continue
        if len(points) > 1 and points[-1][1] == points[-2][1] == point[1]:
            points[-1] = point  # the line stays level, so extend it
        else:
            points.append(point)
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def sample_strip(raw: LatencySamples | None) -> dict[str, Any] | None:
    """The times between tokens as ticks; dense's interleaved rounds below, on the same axis."""
    if raw is None:
        return None
    sets = {
        "this cell": _finite_sorted(raw.inter_token_s),
        "dense, interleaved": _finite_sorted(raw.dense_inter_token_s or []),
    }
    if not sets["this cell"]:
        return None
    known = {name: values for name, values in sets.items() if values}
    # The slowest hundredth would squeeze all others into a corner: count it, do not draw it.
    low = min(values[0] for values in known.values())
    high = max(_quantile(values, 0.99) for values in known.values())
    span = (high - low) or high or 1.0
    axis = max(0.0, low - 0.05 * span), high + 0.05 * span
    rows = [_strip(name, values, index, axis) for index, (name, values) in enumerate(known.items())]
    start, stop = axis
    return {
        "width": WIDTH,
        "height": _STRIP_HEIGHT * len(rows),
        "rows": rows,
        "axis": [
            {"x": round(WIDTH * share), "text": seconds(start + share * (stop - start))}
            for share in (0, 0.5, 1)
        ],
        "title": "Times between tokens",
        "desc": "; ".join(str(row["text"]) for row in rows)
        + ". The box spans the 10th to the 90th percentile.",
    }


def _strip(
    name: str, values: Sequence[float], index: int, axis: tuple[float, float]
) -> dict[str, Any]:
    """One row of ticks with a box; ``values`` are sorted, ``axis`` is (start, stop) in seconds."""
    start, stop = axis

    def x(value: float) -> float:
        return round(WIDTH * (value - start) / (stop - start), 1)

    shown = [value for value in values if value <= stop]
    step = max(1, -(-len(shown) // _MOST_TICKS))
    return {
        "name": name,
        "y": index * _STRIP_HEIGHT,
        # One path for all ticks; those on the same tenth of a pixel are drawn once.
        "ticks": "".join(f"M{mark:g} 0v16" for mark in dict.fromkeys(map(x, shown[::step]))),
        "low": x(_quantile(values, 0.1)),
        "middle": x(_quantile(values, 0.5)),
        "high": x(min(_quantile(values, 0.9), stop)),
        "beyond": len(values) - len(shown),
        "count": len(values),
        "text": f"{name}: median {seconds(_quantile(values, 0.5))} over {len(values)} samples",
    }


def _finite_sorted(rounds: Iterable[Sequence[float]]) -> list[float]:
    return sorted(time for one in rounds for time in one if math.isfinite(time))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def io_floor_bar(one: GenerationIO) -> dict[str, Any]:
    """The I/O floor as a part of the measured time of one token."""
    # A measured bandwidth can be below what a kernel reaches, so the share may exceed 1.
    used = one.utilisation if one.utilisation is not None else math.nan
    share = min(1.0, max(0.0, used)) if math.isfinite(used) else 0.0
    return {
        "width": WIDTH,
        "part": round(WIDTH * share, 1),
        "title": f"I/O floor {seconds(one.floor_s)} of {seconds(one.measured_s)} measured",
        "shape": f"prompt {one.prompt}, {one.new_tokens} new tokens, batch {one.batch_size}",
        "floor": seconds(one.floor_s),
        "measured": seconds(one.measured_s),
        "utilisation": percent(one.utilisation, 0),
        "bytes": f"{size(one.weight_bytes)} weights + {size(one.kv_cache_bytes)} KV cache",
        "bandwidth": f"{number(one.bandwidth_bytes_per_s / 1e9)} GB/s ({one.bandwidth_source})",
    }


def phase_bars(spans: Sequence[PhaseTime]) -> list[dict[str, Any]]:
    """The time of each phase of a cell, as a bar in per cent of the longest."""
    longest = max((span.seconds for span in spans), default=0) or 1.0
    total = sum(span.seconds for span in spans) or 1.0
    return [
        {
            "name": span.phase,
            "seconds": seconds(span.seconds),
            "share": percent(span.seconds / total, 0),
            "width": round(100 * max(0.0, span.seconds) / longest, 1),
        }
        for span in spans
    ]
