"""Memory over time: a sampler in its own process, phases tagged by the process that is watched.

RSS is read every 10 ms by `prunebench.measure.devices.sampler`; this process only notes when its phases begin, so that
watching costs it nothing while it is being timed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import psutil

from prunebench.measure.devices.gpu_log import GpuLog, pcie_traffic, read_log, sharing
from prunebench.measure.devices.timeline import Point, decimate, parse
from prunebench.record.devices import GpuSharing, PcieTraffic
from prunebench.record.memory import GpuMemory, Memory, PhaseMemory, PhaseSpan, Timeline

START = "start"
"""The phase before the first that is named."""
TRANSFERS = "load"
"""The phase in which PCIe transfers are sampled: they cost the GPU's own figures some of their rate."""
_STOP_WITHIN_S = 2.0
_LATE_S = 1.0
"""Samples that end so long before the phases do end too early."""


class _Phase(NamedTuple):
    name: str
    start: float  # time.monotonic, s
    rss: int | None
    allocator: tuple[int, int] | None = (
        None  # peaks of torch's CUDA allocator, allocated and reserved, when it ended
    )
    uss: int | None = None  # when it ended


class MemorySampler:
    """Context that samples this process; `phase` tags, `result` gives the peaks and the timeline.

    ``interval_s`` is the time between samples in seconds, ``gpu`` whether NVML is asked too, of the GPU ``device``.
    """

    def __init__(self, interval_s: float = 0.01, *, gpu: bool = True, device: str = "cuda") -> None:
        self._interval = interval_s
        self._device = device
        self._gpu = gpu
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._problem: str | None = None
        self._phases: list[_Phase] = []
        self._end: _Phase | None = None
        self._sampled: list[Point] = []
        self._log = GpuLog()

    def __enter__(self) -> Self:
        self._phases = [_Phase(START, time.monotonic(), rss_bytes())]
        command = [
            sys.executable,
            "-P",
            "-m",
            "prunebench.measure.devices.sampler",
            str(os.getpid()),
            str(self._interval),
        ]
        try:
            self._file = tempfile.TemporaryFile()  # no name: nothing stays behind, whatever happens
            self._process = subprocess.Popen(
                [*command, self._device] if self._gpu else command,
                stdin=subprocess.PIPE,  # its closing is the sign to end, also when this process dies
                stdout=self._file,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._problem = str(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def phase(self, name: str) -> None:
        """From now on samples belong to the phase ``name``, until the next call. Names may come back."""
        self._close_phase()
        if self._gpu and TRANSFERS in (name, self._phases[-1].name):
            self._tell(b"+" if name == TRANSFERS else b"-")
        self._phases.append(_Phase(name, time.monotonic(), rss_bytes()))

    def result(self) -> tuple[Memory, Timeline]:
        """End the sampling; peaks by phase and the timeline, in bytes and in seconds since the sampler was entered.

        The baseline is the resident set when the first phase was named.
        """
        self._stop()
        assert self._end is not None
        began, end = self._phases[0].start, self._end.start
        sampled = self._sampled
        own = [
            Point(phase.start, phase.rss)
            for phase in (*self._phases, self._end)
            if phase.rss is not None
        ]
        spans = self._spans()
        late = self._late()
        peaks = _peaks(
            spans,
            sampled,
            [point for point in own if sampled and point.time <= sampled[-1].time + _LATE_S],
        )
        rss = [peak.peak_rss_bytes for peak in peaks if peak.peak_rss_bytes is not None]
        if late is not None and (most := max_rss_bytes()) is not None:
            rss.append(most)
        memory = Memory(
            source=self._source(bool(sampled)),
            interval_s=self._interval,
            baseline_rss_bytes=self._phases[min(1, len(self._phases) - 1)].rss,
            peak_rss_bytes=max(rss) if rss else max_rss_bytes(),
            uss_bytes=self._phases[-1].uss,
            gpu=_most([peak.gpu for peak in peaks]),
            phases=peaks,
            problem="; ".join(filter(None, (late, *self._log.problems))) or None,
        )
        shown = [
            PhaseSpan(phase=phase.name, start_s=start - began, end_s=stop - began)
            for phase, start, stop in spans
        ]
        # the moments at which phases begin are read without children: for the line only where the sampler gave nothing
        ends = [
            point
            for point in own
            if not sampled or not sampled[0].time <= point.time <= sampled[-1].time
        ]
        # the first sample after the end closes the last stretch: of equal samples only the ends are written
        last = [point._replace(time=end) for point in sampled if point.time > end][:1]
        line = sorted(
            [*(point for point in sampled if point.time <= end), *ends, *last],
            key=lambda point: point.time,
        )
        return memory, decimate(line, began, shown)

    def sharing(self) -> GpuSharing | None:
        """End the sampling; whether others were on the GPU, None where none was watched."""
        self._stop()
        return sharing(
            self._log, [(phase.name, start, stop) for phase, start, stop in self._spans()]
        )

    def pcie(self) -> PcieTraffic | None:
        """End the sampling; PCIe traffic while loading, None where there was none to be seen."""
        self._stop()
        return pcie_traffic(self._log)

    def _spans(self) -> list[tuple[_Phase, float, float]]:
        assert self._end is not None
        return [
            (phase, phase.start, following.start)
            for phase, following in zip(self._phases, [*self._phases[1:], self._end], strict=True)
        ]

    def _late(self) -> str | None:
        """What to say where the samples end before the phases do."""
        if self._end is None or not self._sampled:
            return None
        if self._problem is None and self._end.start - self._sampled[-1].time <= _LATE_S:
            return None
        until = self._sampled[-1].time - self._phases[0].start
        return f"the sampler gave nothing after {until:.1f} s: {self._problem or 'it stood still'}"

    def _tell(self, what: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(what)
                self._process.stdin.flush()
            except OSError as error:  # it is dead, which is noticed at the end
                self._problem = str(error)

    def _source(self, sampled: bool) -> str:
        if sampled:
            where = (
                "/proc/PID/statm with children" if sys.platform.startswith("linux") else "psutil"
            )
            return f"own process, {where}, every {self._interval * 1000:g} ms"
        return (
            f"getrusage ru_maxrss; the sampler did not run: {self._problem or 'it gave no sample'}"
        )

    def _close_phase(self) -> None:
        self._phases[-1] = self._phases[-1]._replace(allocator=_allocator_peaks(), uss=uss_bytes())

    def _stop(self) -> None:
        if self._end is not None:
            return
        self._close_phase()
        self._end = _Phase("", time.monotonic(), rss_bytes())
        if self._process is not None:
            self._end_process(self._process)
        if self._file is not None:
            self._file.seek(0)
            written = self._file.read().decode("ascii", errors="replace")
            self._sampled, self._log = parse(written), read_log(written.splitlines())
            self._file.close()

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # bytes that a dead sampler never took
            process.stdin.close()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._problem = "it did not end when it was told to"
            process.kill()
            with suppress(
                subprocess.TimeoutExpired
            ):  # what hangs in the kernel cannot be killed: leave it
                process.wait(_STOP_WITHIN_S)
        else:
            if process.returncode:
                self._problem = f"it ended with exit code {process.returncode}"


def without(memory: Memory, phases: Collection[str]) -> Memory:
    """``memory`` with the peaks of all phases but these, where the figures of those that are left are known."""
    left = [entry for entry in memory.phases if entry.phase not in phases]
    peaks = [entry.peak_rss_bytes for entry in left if entry.peak_rss_bytes is not None]
    rss = max(peaks) if peaks and len(peaks) == len(left) else memory.peak_rss_bytes
    return memory.model_copy(
        update={"peak_rss_bytes": rss, "gpu": _most([entry.gpu for entry in left])}
    )


def rss_bytes() -> int | None:
    """Resident set of this process in bytes, without its children."""
    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error:
        return None


def uss_bytes() -> int | None:
    """Unique set size of this process in bytes: what would be free if it ended; None where it cannot be read."""
    try:
        return int(getattr(psutil.Process().memory_full_info(), "uss", 0)) or None
    except (psutil.Error, OSError, AttributeError):
        return None


def max_rss_bytes() -> int | None:
    """The highest resident set since this process began, by getrusage; None where there is no such call."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _allocator_peaks() -> tuple[int, int] | None:
    """Peaks of torch's CUDA allocator since the last call: bytes allocated and reserved; None where CUDA is idle."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    allocated = reserved = 0
    for device in range(torch.cuda.device_count()):
        allocated += torch.cuda.max_memory_allocated(device)
        reserved += torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return allocated, reserved


def _peaks(
    spans: list[tuple[_Phase, float, float]], sampled: list[Point], own: list[Point]
) -> list[PhaseMemory]:
    """Peaks by phase name, in the order of their first appearance; spans of one name are taken together."""
    found: dict[str, PhaseMemory] = {}
    times = [point.time for point in sampled]
    for phase, start, stop in spans:
        first, last = bisect_left(times, start), bisect_right(times, stop)
        if 0 < first < len(sampled) and sampled[first][1:] == sampled[first - 1][1:]:
            first -= 1  # of a run of equal samples only the ends are written: this one lasts into the phase
        inside = [*sampled[first:last], *(point for point in own if start <= point.time <= stop)]
        gpu = GpuMemory(
            nvml_device_bytes=_highest(point.gpu_device for point in inside),
            nvml_process_bytes=_highest(point.gpu_process for point in inside),
            allocated_bytes=phase.allocator[0] if phase.allocator else None,
            reserved_bytes=phase.allocator[1] if phase.allocator else None,
        )
        before = found.get(phase.name)
        found[phase.name] = PhaseMemory(
            phase=phase.name,
            peak_rss_bytes=_highest(
                (*(point.rss for point in inside), before.peak_rss_bytes if before else None)
            ),
            uss_bytes=_highest((phase.uss, before.uss_bytes if before else None)),
            gpu=_most([gpu, before.gpu if before else None]),
        )
    return list(found.values())


def _most(parts: list[GpuMemory | None]) -> GpuMemory | None:
    """The highest of each figure; None where there is none at all."""
    highest = {
        name: _highest(getattr(part, name) for part in parts if part is not None)
        for name in GpuMemory.model_fields
    }
    return GpuMemory(**highest) if any(value is not None for value in highest.values()) else None


def _highest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)
