"""Sample memory over time: a sampler in its own process, and phases named by the sampled process.

`prunebench.measure.devices.sampler` reads the RSS every 10 ms. This process only notes when its
phases begin, so sampling costs it nothing while it is being timed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from prunebench.isolation.interpreter import module_command
from prunebench.measure.devices import memory_peaks
from prunebench.measure.devices.gpu_log import GpuLog, pcie_traffic, read_log, sharing
from prunebench.measure.devices.memory_peaks import Phase, Recording
from prunebench.measure.devices.process_memory import (
    allocator_peaks,
    max_rss_bytes,
    rss_bytes,
    uss_bytes,
)
from prunebench.measure.devices.timeline import Point, parse
from prunebench.record.devices import GpuSharing, PcieTraffic
from prunebench.record.memory import Memory, Timeline

START = "start"
"""The phase before the first one that is named."""
TRANSFERS = "load"
"""PCIe transfers are sampled in this phase only: NVML then reads its other figures less often."""
_STOP_WITHIN_S = 5.0


class MemorySampler:
    """Context that samples this process; `phase` names what it does, `result` gives the peaks.

    ``interval_s`` is the time between samples in seconds. With ``gpu``, NVML is read too, for the
    GPU ``device``.
    """

    def __init__(self, interval_s: float = 0.01, *, gpu: bool = True, device: str = "cuda") -> None:
        self._interval = interval_s
        self._device = device
        self._gpu = gpu
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._failure: str | None = None
        self._phases: list[Phase] = []
        self._end: Phase | None = None
        self._sampled: list[Point] = []
        self._log = GpuLog()

    def __enter__(self) -> Self:
        self._phases = [Phase(START, time.monotonic(), rss_bytes())]
        command = module_command(
            "prunebench.measure.devices.sampler", str(os.getpid()), str(self._interval)
        )
        try:
            # A file without a name leaves nothing behind. A pipe would block the sampler when full.
            self._file = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [*command, self._device] if self._gpu else command,
                stdin=subprocess.PIPE,  # the sampler ends when it closes, also if this process dies
                stdout=self._file,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._failure = str(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def phase(self, name: str) -> None:
        """Begin the phase ``name``, which lasts until the next call. Names can be used again."""
        self._close_phase()
        if self._gpu and TRANSFERS in (name, self._phases[-1].name):
            self._tell(b"+" if name == TRANSFERS else b"-")
        self._phases.append(Phase(name, time.monotonic(), rss_bytes()))

    def result(self) -> tuple[Memory, Timeline]:
        """End the sampling.

        Returns the peaks by phase, in bytes, and the timeline, in bytes and in seconds since the
        sampler was entered.
        """
        recording = self._recording()
        return memory_peaks.memory(recording, max_rss_bytes()), memory_peaks.timeline(recording)

    def sharing(self) -> GpuSharing | None:
        """End the sampling; whether other processes used the GPU, None if no GPU was watched."""
        spans = self._recording().spans
        return sharing(self._log, [(phase.name, start, stop) for phase, start, stop in spans])

    def pcie(self) -> PcieTraffic | None:
        """End the sampling; PCIe traffic in the phase 'load', None if it was not sampled."""
        self._stop()
        return pcie_traffic(self._log)

    def _recording(self) -> Recording:
        self._stop()
        assert self._end is not None
        return Recording(
            phases=self._phases,
            end=self._end,
            sampled=self._sampled,
            interval_s=self._interval,
            source=self._source(),
            failure=self._failure,
            problems=self._log.problems,
        )

    def _source(self) -> str:
        if not self._sampled:
            reason = self._failure or "it gave no sample"
            return f"getrusage ru_maxrss; the sampler did not run: {reason}"
        linux = sys.platform.startswith("linux")
        where = "/proc/PID/statm with children" if linux else "psutil"
        return f"own process, {where}, every {self._interval * 1000:g} ms"

    def _tell(self, what: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(what)
                self._process.stdin.flush()
            except OSError as error:  # the sampler is dead; the result will say so
                self._failure = str(error)

    def _close_phase(self) -> None:
        self._phases[-1] = self._phases[-1]._replace(allocator=allocator_peaks(), uss=uss_bytes())

    def _stop(self) -> None:
        if self._end is not None:
            return
        self._close_phase()
        self._end = Phase("", time.monotonic(), rss_bytes())
        if self._process is not None:
            self._end_process(self._process)
        if self._file is not None:
            self._file.seek(0)
            written = self._file.read().decode("ascii", errors="replace")
            self._sampled, self._log = parse(written), read_log(written.splitlines())
            self._file.close()

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # bytes that a dead sampler never read
            process.stdin.close()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._failure = "it did not end when it was told to"
            process.kill()
            # A process that hangs in a kernel call cannot be killed: leave it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_WITHIN_S)
        else:
            if process.returncode:
                self._failure = f"it ended with exit code {process.returncode}"
