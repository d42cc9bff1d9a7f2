"""Geometry of the small graphics of a card, for the template to draw: strips and bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prunebench_report.figures.path_data import shortest, ticks
from prunebench_report.text import number, percent, seconds, size

if TYPE_CHECKING:
    from prunebench.record.io import GenerationIO
    from prunebench.record.record import PhaseTime
    from prunebench.record.speed import LatencySamples

WIDTH = 640
# More samples than this are drawn as every second, third, ... one.
_MOST_TICKS = 160


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
    rows = [_strip(name, values, axis) for name, values in known.items()]
    start, stop = axis
    return {
        "width": WIDTH,
        "rows": rows,
        "axis": [
            {"x": round(WIDTH * share), "text": seconds(start + share * (stop - start))}
            for share in (0, 0.5, 1)
        ],
        "title": "Times between tokens",
        "desc": "; ".join(str(row["text"]) for row in rows)
        + ". The box spans the 10th to the 90th percentile.",
    }


def _strip(name: str, values: Sequence[float], axis: tuple[float, float]) -> dict[str, Any]:
    """One row of ticks with a box; ``values`` are sorted, ``axis`` is (start, stop) in seconds."""
    start, stop = axis

    def x(value: float) -> int:
        return round(WIDTH * (value - start) / (stop - start))

    shown = [value for value in values if value <= stop]
    step = max(1, -(-len(shown) // _MOST_TICKS))
    return {
        "name": name,
        # One path for all ticks; those on the same pixel are drawn once.
        "ticks": ticks(list(dict.fromkeys(map(x, shown[::step])))),
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
        "part": shortest(100 * share, 1),
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
            "width": shortest(100 * max(0.0, span.seconds) / longest, 1),
        }
        for span in spans
    ]
