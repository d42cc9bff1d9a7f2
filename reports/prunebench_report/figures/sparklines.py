"""Geometry of the small graphics of a card, for the template to draw: timeline, sample strips, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from prunebench_report.text import number, percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.memory import Timeline
    from prunebench.record.record import PhaseTime
    from prunebench.record.speed import LatencySamples

WIDTH = 640
_HEIGHT = 120
_TICKS = 160
_STYLES = ("", "dashed", "dotted")


def drawable(memory: Timeline | None) -> TypeGuard[Timeline]:
    """Whether there are two samples or more."""
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
    """Memory over time with the phases as bands, on axes that hold those ``beside`` too; None where it is not drawable."""
    if not drawable(memory):
        return None
    series = _series(memory)
    together = [memory, *beside]
    end = max(_end(one) for one in together) or 1.0
    ceiling = max(max(values) for one in together for values in _series(one).values()) or 1
    step = nice(ceiling / 3)
    top = step * math.ceil(ceiling / step)
    bands = []
    for index, span in enumerate(memory.phases):
        left, right = width * span.start_s / end, width * min(span.end_s, end) / end
        room = right - left > 7 * len(span.phase) + 6
        bands.append(
            {
                "x": round(left, 1),
                "width": round(max(0.0, right - left), 1),
                "odd": index % 2 == 1,
                "label": span.phase if room else "",
                "title": f"{span.phase}: {seconds(span.end_s - span.start_s)} from {seconds(span.start_s)}",
            }
        )
    peak = max(memory.rss_bytes)
    return {
        "width": width,
        "height": height,
        "bands": bands,
        "lines": [
            {
                "name": name,
                "path": _line(memory.time_s, values, (end, width), (top, height)),
                "style": _STYLES[index],
            }
            for index, (name, values) in enumerate(series.items())
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
        "title": f"Memory over {seconds(_end(memory))}, peak resident set {size(peak)}",
        "desc": "Phases: " + "; ".join(str(band["title"]) for band in bands) + ".",
    }


def _series(memory: Timeline) -> dict[str, list[int]]:
    series = {"resident set": memory.rss_bytes}
    if memory.gpu_bytes and len(memory.gpu_bytes) == len(memory.time_s):
        series["GPU"] = memory.gpu_bytes
    if memory.gpu_device_bytes and len(memory.gpu_device_bytes) == len(memory.time_s):
        series["GPU with everything on it"] = memory.gpu_device_bytes
    return series


def _end(memory: Timeline) -> float:
    return max([memory.time_s[-1], *(span.end_s for span in memory.phases)])


def _line(
    times: Sequence[float],
    values: Sequence[int],
    across: tuple[float, int],
    upwards: tuple[float, int],
) -> str:
    """An SVG path through the points; what would fall on the pixel before it, or inside a level stretch, is left out."""
    (end, width), (top, height) = across, upwards
    points: list[tuple[int, int]] = []
    for time, value in zip(times, values, strict=True):
        point = round(width * min(max(time / end, 0), 1)), round(height * (1 - value / top))
        if points[-1:] == [point]:
            continue
        if len(points) > 1 and points[-1][1] == points[-2][1] == point[1]:
            points[-1] = point
        else:
            points.append(point)
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def nice(value: float) -> float:
    """The next of 1, 2, 5 x 10^n that is not below ``value``; 1 where it is not positive."""
    if value <= 0:
        return 1.0
    base = 10.0 ** math.floor(math.log10(value))
    return next(factor * base for factor in (1, 2, 5, 10) if factor * base >= value * (1 - 1e-9))


def samples(raw: LatencySamples | None) -> dict[str, Any] | None:
    """The times between tokens as a strip, dense's interleaved rounds below on the same axis."""
    if raw is None:
        return None
    sets = {"this cell": [t for one in raw.inter_token_s for t in one]}
    sets["dense, between"] = [t for one in raw.dense_inter_token_s or [] for t in one]
    known = {name: sorted(t for t in values if math.isfinite(t)) for name, values in sets.items()}
    known = {name: values for name, values in known.items() if values}
    if "this cell" not in known:
        return None
    # The slowest hundredth would squeeze all others into a corner: it is counted beside the strip.
    low = min(values[0] for values in known.values())
    high = max(_quantile(values, 0.99) for values in known.values())
    span = (high - low) or high or 1.0
    start, stop = max(0.0, low - 0.05 * span), high + 0.05 * span

    def x(value: float) -> float:
        return round(WIDTH * (value - start) / (stop - start), 1)

    rows = []
    for index, (name, values) in enumerate(known.items()):
        shown = [value for value in values if value <= stop]
        step = max(1, -(-len(shown) // _TICKS))
        rows.append(
            {
                "name": name,
                "y": index * 34,
                "ticks": "".join(
                    f"M{mark:g} 0v16" for mark in dict.fromkeys(map(x, shown[::step]))
                ),
                "low": x(_quantile(values, 0.1)),
                "middle": x(_quantile(values, 0.5)),
                "high": x(min(_quantile(values, 0.9), stop)),
                "beyond": len(values) - len(shown),
                "count": len(values),
                "text": f"{name}: median {seconds(_quantile(values, 0.5))} over {len(values)} samples",
            }
        )
    return {
        "width": WIDTH,
        "height": 34 * len(rows),
        "rows": rows,
        "axis": [
            {"x": round(WIDTH * share), "text": seconds(start + share * (stop - start))}
            for share in (0, 0.5, 1)
        ],
        "title": "Times between tokens",
        "desc": "; ".join(str(row["text"]) for row in rows)
        + ". The box spans the 10th to the 90th percentile.",
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def floor(one: GenerationIO) -> dict[str, Any]:
    """The I/O floor inside the measured time of one token."""
    share = min(1.0, max(0.0, one.utilisation)) if math.isfinite(one.utilisation) else 0.0
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


def phases(spans: Sequence[PhaseTime]) -> list[dict[str, Any]]:
    """Where the cell's time went: a bar a phase, against the longest."""
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
