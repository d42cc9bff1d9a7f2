"""The memory sampler: `python -m prunebench.measure.devices.sampler PID INTERVAL_S [GPU]`.

Every interval it reads the resident set of process PID and its descendants and, if GPU is given,
NVML's figures of the GPU that torch calls by that name, e.g. cuda:1 (`gpu_watch`).

Output: lines `time rss gpu_process gpu_device`. Time is in seconds by `time.monotonic`, one clock
for all processes of a machine; sizes are in bytes, `-` for not available. Of a run of equal samples
only the first and the last are written. Lines that begin with a word are for `gpu_log`.

Input: `+` and `-` begin and end the sampling of PCIe transfers. The sampler ends when its input is
closed, which also happens when its parent dies, or when process PID is gone. Without `select.poll`
it fails at once, and the caller says so.

It imports the standard library, and psutil or NVML only if needed, to start in a tenth of a second.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Protocol

from prunebench.isolation.process_tree import linux_tree

if TYPE_CHECKING:
    from prunebench.measure.devices.gpu_watch import GpuWatch

LINUX = sys.platform.startswith("linux")
CHILDREN_EVERY_S = 0.5
FLUSH_EVERY_S = 1.0

Sample = tuple[int, int | None, int | None]
"""Bytes: RSS, GPU memory of the process, GPU memory in use on the device."""


class Processes(Protocol):
    """The sampled process with its descendants."""

    def rss(self, now: float) -> int | None:
        """Resident set in bytes at ``now``; None when the process is gone."""


class LinuxRss:
    """The resident set of one process, from /proc/PID/statm.

    The file stays open: reading it again costs a fraction of opening it. Raises OSError if there is
    no such process.
    """

    def __init__(self, pid: int) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._handle = os.open(f"/proc/{pid}/statm", os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self) -> int | None:
        """Bytes; None when the process is gone."""
        try:
            pages = int(os.pread(self._handle, 96, 0).split()[1])
            return pages * self._page or None  # a zombie has no pages
        except (OSError, IndexError):
            return None


class LinuxProcesses:
    """Resident set of a process and its descendants, from /proc.

    A page that several of them share counts several times.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._root = LinuxRss(pid)
        self._others: dict[int, LinuxRss] = {}
        self._listed = float("-inf")

    def rss(self, now: float) -> int | None:
        """Bytes at ``now``; None when the process is gone."""
        total = self._root.read()
        if total is None:
            return None
        if now - self._listed >= CHILDREN_EVERY_S:
            self._listed = now
            self._find()
        if self._others:
            for pid, reader in list(self._others.items()):
                value = reader.read()
                if value is None:
                    del self._others[pid]
                else:
                    total += value
        return total

    def _find(self) -> None:
        for pid in linux_tree(self._pid) - {self._pid}:
            if pid not in self._others:
                try:
                    self._others[pid] = LinuxRss(pid)
                except OSError:  # the process has ended meanwhile
                    continue


class OtherProcesses:
    """Like `LinuxProcesses` for systems without /proc, by psutil.

    Without children, because listing them is slow on these systems.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        self._error = psutil.Error
        self._process = psutil.Process(pid)

    def rss(self, _now: float) -> int | None:
        """Bytes; None when the process is gone."""
        try:
            return int(self._process.memory_info().rss)
        except self._error:
            return None


class Ticks:
    """Moments on a fixed grid, ``interval_s`` apart, until the descriptor ``control`` is closed."""

    def __init__(self, control: int, interval_s: float) -> None:
        self.transfers = False
        """Whether PCIe transfers are to be sampled."""
        self._control = control
        self._interval = interval_s

    def __iter__(self) -> Iterator[float]:
        poller = select.poll()
        poller.register(self._control, select.POLLIN | select.POLLHUP)
        start = now = time.monotonic()
        number = 0
        while True:
            yield now
            # A late tick does not delay the others. Ticks that were missed are skipped: catching
            # up would only read the same moment several times.
            now = time.monotonic()
            number = max(number, int((now - start) / self._interval)) + 1
            wait_s = max(0.0, start + number * self._interval - now)
            if poller.poll(wait_s * 1000):
                told = os.read(self._control, 64)
                if not told:
                    return
                self.transfers = told.endswith(b"+")
            now = time.monotonic()


class SampleWriter:
    """Write samples as lines; of a run of equal ones only the first and the last."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._written: Sample | None = None
        self._held: float | None = None  # time of the last of a run; not yet written
        self._flushed = float("-inf")

    def add(self, now: float, values: Sample) -> None:
        if values == self._written:
            self._held = now
        else:
            self._end_run()
            self._line(now, values)
            self._written = values
        if now - self._flushed >= FLUSH_EVERY_S:
            self._out.flush()
            self._flushed = now

    def notes(self, lines: list[str]) -> None:
        """Write lines for `gpu_log`; the next sample flushes them."""
        if lines:
            self._out.writelines(f"{line}\n" for line in lines)
            self._flushed = float("-inf")

    def close(self) -> None:
        self._end_run()
        self._out.flush()

    def _end_run(self) -> None:
        if self._held is not None and self._written is not None:
            self._line(self._held, self._written)
        self._held = None

    def _line(self, moment: float, values: Sample) -> None:
        figures = " ".join("-" if value is None else str(value) for value in values)
        self._out.write(f"{moment:.4f} {figures}\n")


def sample(
    ticks: Ticks, processes: Processes, writer: SampleWriter, watch: GpuWatch | None
) -> None:
    """Write a sample for each tick, until the ticks end or the process is gone."""
    on_gpu: tuple[int | None, int | None] = (None, None)
    for now in ticks:
        rss = processes.rss(now)
        if rss is None:
            break
        if watch is not None:
            watch.transfers = ticks.transfers
            on_gpu = watch.latest(now)
            writer.notes(watch.notes())
        writer.add(now, (rss, *on_gpu))
    if watch is not None:
        writer.notes(watch.notes())
    writer.close()


def _watch(device: str, pid: int) -> GpuWatch:
    from prunebench.measure.devices.gpu_watch import GpuWatch

    return GpuWatch(device, (lambda: linux_tree(pid)) if LINUX else (lambda: {pid}))


def main(arguments: list[str]) -> None:
    """Sample as the command line says until standard input ends."""
    pid, interval_s, *gpu = arguments
    processes = LinuxProcesses(int(pid)) if LINUX else OtherProcesses(int(pid))
    watch = _watch(gpu[0], int(pid)) if gpu else None
    ticks = Ticks(sys.stdin.fileno(), float(interval_s))
    sample(ticks, processes, SampleWriter(sys.stdout), watch)
    os._exit(0)  # a thread that hangs in NVML must not hold the interpreter


if __name__ == "__main__":
    main(sys.argv[1:])
