"""From samples and phases to peaks of memory by phase, and to the timeline."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prunebench.measure.devices.timeline import Point, decimate
from prunebench.record.memory import GpuMemory, Memory, PhaseMemory, PhaseSpan, Timeline

_LATE_S = 1.0
"""If the last sample is this much older than the end of the last phase, the sampler has failed."""


class Phase(NamedTuple):
    """A phase from ``start`` (`time.monotonic`, s) to the start of the next one. Sizes in bytes."""

    name: str
    start: float
    rss: int | None
    """When it began."""
    allocator: tuple[int, int] | None = None
    """Peaks of torch's CUDA allocator, (allocated, reserved), when it ended."""
    uss: int | None = None
    """When it ended."""


class Span(NamedTuple):
    """A phase and its times."""

    phase: Phase
    start: float
    stop: float


@dataclass(frozen=True)
class Recording:
    """What the sampler and the sampled process wrote down."""

    phases: Sequence[Phase]
    end: Phase
    """The end of the last phase; it has no name."""
    sampled: Sequence[Point]
    """In order of time. Of a run of equal samples only the first and the last."""
    interval_s: float
    source: str
    """Where the samples are from."""
    failure: str | None = None
    """Why the sampler ended, if it did not end as told."""
    problems: Sequence[str] = ()
    """Other things that went wrong."""

    @property
    def spans(self) -> list[Span]:
        following = [*self.phases[1:], self.end]
        return [
            Span(phase, phase.start, after.start)
            for phase, after in zip(self.phases, following, strict=True)
        ]

    @property
    def own(self) -> list[Point]:
        """What the process itself read when a phase began; without its children."""
        return [
            Point(phase.start, phase.rss)
            for phase in (*self.phases, self.end)
            if phase.rss is not None
        ]

    @property
    def began(self) -> float:
        return self.phases[0].start

    def late(self) -> str | None:
        """A sentence that says when the samples end, if they end before the phases do."""
        if not self.sampled:
            return None
        last = self.sampled[-1].time
        if self.failure is None and self.end.start - last <= _LATE_S:
            return None
        reason = self.failure or "it stood still"
        return f"the sampler gave nothing after {last - self.began:.1f} s: {reason}"


def memory(recording: Recording, max_rss: int | None) -> Memory:
    """The peaks of the cell and of its phases.

    ``max_rss`` is the kernel's own maximum (`max_rss_bytes`), used if the samples are incomplete.
    The baseline is the resident set when the first phase was named.
    """
    late = recording.late()
    phases = _peaks(recording)
    rss = [peak.peak_rss_bytes for peak in phases]
    if late is not None or _highest(rss) is None:
        rss.append(max_rss)
    named = recording.phases[min(1, len(recording.phases) - 1)]
    return Memory(
        source=recording.source,
        interval_s=recording.interval_s,
        baseline_rss_bytes=named.rss,
        peak_rss_bytes=_highest(rss),
        uss_bytes=recording.phases[-1].uss,
        gpu=_most(peak.gpu for peak in phases),
        phases=phases,
        problem="; ".join(filter(None, (late, *recording.problems))) or None,
    )


def timeline(recording: Recording) -> Timeline:
    """The samples over time, in seconds since the first phase began."""
    began, end, sampled = recording.began, recording.end.start, recording.sampled
    points = [point for point in sampled if point.time <= end]
    # What the process read itself leaves its children out, so the line has it only where there is
    # no sample: before the sampler's first and after its last one.
    points += [
        point
        for point in recording.own
        if not sampled or not sampled[0].time <= point.time <= sampled[-1].time
    ]
    # Of equal samples only the first and last are written: if the last one came after the end, the
    # level lasted until the end.
    points += [point._replace(time=end) for point in sampled if point.time > end][:1]
    return decimate(
        sorted(points, key=lambda point: point.time),
        began,
        [
            PhaseSpan(phase=phase.name, start_s=start - began, end_s=stop - began)
            for phase, start, stop in recording.spans
        ],
    )


def without_phases(found: Memory, names: Collection[str]) -> Memory:
    """``found`` with the overall peaks of all phases except ``names``.

    If the RSS of one of the remaining phases is not known, the RSS peak stays as it is.
    """
    left = [entry for entry in found.phases if entry.phase not in names]
    peaks = [entry.peak_rss_bytes for entry in left if entry.peak_rss_bytes is not None]
    rss = max(peaks) if peaks and len(peaks) == len(left) else found.peak_rss_bytes
    return found.model_copy(
        update={"peak_rss_bytes": rss, "gpu": _most(entry.gpu for entry in left)}
    )


def _peaks(recording: Recording) -> list[PhaseMemory]:
    """Peaks by phase name, in order of first appearance; spans with one name are one phase."""
    found: dict[str, PhaseMemory] = {}
    sampled = recording.sampled
    times = [point.time for point in sampled]
    # If the sampler failed, a phase after that has no peak: the size at its start would be too low.
    own = [point for point in recording.own if sampled and point.time <= times[-1] + _LATE_S]
    for phase, start, stop in recording.spans:
        first, last = bisect_left(times, start), bisect_right(times, stop)
        # Between two equal samples lies a run of which only the ends are written. If the phase
        # begins within it, the run's level is part of the phase.
        if 0 < first < len(sampled) and sampled[first][1:] == sampled[first - 1][1:]:
            first -= 1
        inside = [*sampled[first:last], *(point for point in own if start <= point.time <= stop)]
        allocated, reserved = phase.allocator or (None, None)
        gpu = GpuMemory(
            nvml_device_bytes=_highest(point.gpu_device for point in inside),
            nvml_process_bytes=_highest(point.gpu_process for point in inside),
            allocated_bytes=allocated,
            reserved_bytes=reserved,
        )
        before = found.get(phase.name)
        rss = [point.rss for point in inside]
        found[phase.name] = PhaseMemory(
            phase=phase.name,
            peak_rss_bytes=_highest([*rss, before.peak_rss_bytes if before else None]),
            uss_bytes=_highest([phase.uss, before.uss_bytes if before else None]),
            gpu=_most([gpu, before.gpu if before else None]),
        )
    return list(found.values())


def _most(parts: Iterable[GpuMemory | None]) -> GpuMemory | None:
    """The highest of each figure; None if no part has any."""
    known = [part for part in parts if part is not None]
    highest = {
        name: _highest(getattr(part, name) for part in known) for name in GpuMemory.model_fields
    }
    return GpuMemory(**highest) if any(value is not None for value in highest.values()) else None


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
