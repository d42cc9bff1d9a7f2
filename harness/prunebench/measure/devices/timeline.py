"""Parse the sampler's lines, and reduce them to at most 600 points without losing a peak."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from prunebench.record.memory import PhaseSpan, Timeline

POINTS = 600


class Point(NamedTuple):
    """Memory at one moment: `time.monotonic` seconds, bytes; None is "not available"."""

    time: float
    rss: int
    gpu_process: int | None = None
    gpu_device: int | None = None

    @property
    def gpu(self) -> int | None:
        """What the process uses, or the whole device if NVML does not tell processes apart."""
        return self.gpu_device if self.gpu_process is None else self.gpu_process


def parse(text: str) -> list[Point]:
    """The points in the sampler's output, lines `time rss gpu_process gpu_device`.

    Skips other lines and half-written ones.
    """
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
    """At most ``limit`` of the points, in order of time, with times in seconds since ``began``.

    The span is cut into buckets of equal length. Each keeps its first point, those of lowest and
    highest RSS, and those of highest GPU use, so that no peak is lost and no step is moved by more
    than a bucket.
    """
    # A bucket keeps at most five points.
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
    # Indices at which a new bucket begins. Buckets have equal times, not equal numbers of points: a
    # long quiet stretch consists of two points.
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
    """GPU bytes with gaps (only RSS was read) filled by the last value before, else the first."""
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
