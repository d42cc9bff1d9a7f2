"""The sampler's lines as points, and a timeline of at most 600 of them that keeps every peak's height."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from prunebench.record.memory import PhaseSpan, Timeline

POINTS = 600


class Point(NamedTuple):
    """Memory at one moment: `time.monotonic` seconds; bytes, None where not available."""

    time: float
    rss: int
    gpu_process: int | None = None
    gpu_device: int | None = None

    @property
    def gpu(self) -> int | None:
        """The process's own use, or the device's where NVML does not tell processes apart."""
        return self.gpu_device if self.gpu_process is None else self.gpu_process


def parse(text: str) -> list[Point]:
    """The points of the sampler's output, lines `time rss gpu_process gpu_device`; a half-written line is left out."""
    points = []
    for line in text.splitlines():
        fields = line.split()
        try:
            time, rss, process, device = fields
            points.append(Point(float(time), int(rss), _bytes(process), _bytes(device)))
        except ValueError:
            continue
    return points


def decimate(
    points: Sequence[Point], began: float, phases: list[PhaseSpan], limit: int = POINTS
) -> Timeline:
    """At most ``limit`` of the points, ordered by time, times in seconds since ``began``.

    The span is cut into buckets of equal length; each keeps its first, lowest and highest RSS and its highest uses
    of the GPU, so that no peak is lost and no step is smeared over more than a bucket.
    """
    kept = list(points) if len(points) <= limit else _extremes(points, max(1, limit // 5))
    gpu = _filled([point.gpu for point in kept])
    own = any(point.gpu_process is not None for point in kept)
    return Timeline(
        time_s=[round(point.time - began, 4) for point in kept],
        rss_bytes=[point.rss for point in kept],
        gpu_bytes=gpu,
        gpu_device_bytes=_filled([point.gpu_device for point in kept]) if own else None,
        phases=phases,
    )


def _extremes(points: Sequence[Point], buckets: int) -> list[Point]:
    first, last = points[0].time, points[-1].time
    width = (last - first) / buckets or 1.0
    cuts = [0]
    for index, (before, after) in enumerate(pairwise(points)):
        if min(int((after.time - first) / width), buckets - 1) != min(
            int((before.time - first) / width), buckets - 1
        ):
            cuts.append(index + 1)
    kept: set[int] = set()
    for start, stop in pairwise([*cuts, len(points)]):
        inside = range(start, stop)
        kept.add(start)
        kept.add(min(inside, key=lambda index: points[index].rss))
        kept.add(max(inside, key=lambda index: points[index].rss))
        kept.add(max(inside, key=lambda index: points[index].gpu or 0))
        kept.add(max(inside, key=lambda index: points[index].gpu_device or 0))
    return [points[index] for index in sorted(kept)]


def _filled(values: list[int | None]) -> list[int] | None:
    """GPU bytes with the gaps, moments at which only RSS was read, filled by the value before (else the first)."""
    known = next((value for value in values if value is not None), None)
    if known is None:
        return None
    filled = []
    for value in values:
        known = known if value is None else value
        filled.append(known)
    return filled


def _bytes(field: str) -> int | None:
    return None if field == "-" else int(field)
