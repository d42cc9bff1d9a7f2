"""The memory sampler's own process: `python -m prunebench.measure.devices.sampler PID INTERVAL_S [GPU]`.

Every interval it reads the resident set of the process and its descendants and, where `GPU` is given, NVML's figures
of what torch calls by that name, e.g. cuda:1 (`gpu_watch`). It writes lines `time rss gpu_process gpu_device` to its
standard output: seconds by `time.monotonic`, one clock for all processes of a machine; bytes, `-` for not available.
Runs of equal samples are written as their first and last line. Lines that begin with a word are for `gpu_log`.
It ends when its standard input is closed, that is also when its parent dies, or when the process is gone; `+` and `-`
there begin and end the sampling of PCIe transfers. It needs `poll`; where there is none it fails at once and the caller
says so.

Imports the standard library, and psutil or NVML only where they are needed, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import IO, TYPE_CHECKING

from prunebench.isolation.process_tree import linux_tree

if TYPE_CHECKING:
    from prunebench.measure.devices.gpu_watch import GpuWatch

CHILDREN_EVERY_S = 0.5
FLUSH_EVERY_S = 1.0

Sample = tuple[int, int | None, int | None]  # rss, gpu of the process, gpu of the device: bytes


class LinuxRss:
    """Reads one process's resident set by /proc/PID/statm, kept open. Raises OSError where there is no such process."""

    def __init__(self, pid: int) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._handle = os.open(f"/proc/{pid}/statm", os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self) -> int | None:
        """Bytes; None when the process is gone."""
        try:
            return (
                int(os.pread(self._handle, 96, 0).split()[1]) * self._page or None
            )  # a zombie has no pages
        except (OSError, IndexError):
            return None


class LinuxProcesses:
    """Resident set of a process and its descendants by /proc; pages that they share count once for each."""

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
                except OSError:  # it ended meanwhile
                    continue


class OtherProcesses:
    """The same through psutil, where there is no /proc; children are left out, listing them is slow there."""

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


def sample(
    pid: int, interval_s: float, control: int, out: IO[str], *, gpu: str | None = None
) -> None:
    """Write samples until the file descriptor ``control`` is closed or the process is gone.

    Ticks stand on a fixed grid; those that are missed are left out. What a tick costs is mostly waking up.
    """
    linux = sys.platform.startswith("linux")
    processes = LinuxProcesses(pid) if linux else OtherProcesses(pid)
    watch = None if gpu is None else _watch(gpu, pid, linux=linux)
    written: Sample | None = None
    held: float | None = None  # when the last of a run of equal samples was taken; not yet written
    poller = select.poll()
    poller.register(control, select.POLLIN | select.POLLHUP)
    start = now = time.monotonic()
    flushed = float("-inf")
    ticks = 0
    on_gpu: tuple[int | None, int | None] = (None, None)
    while True:
        rss = processes.rss(now)
        if rss is None:
            break
        if watch is not None:
            on_gpu = watch.latest(now)
            if notes := watch.notes():
                out.writelines(f"{note}\n" for note in notes)
                flushed = float("-inf")
        values = (rss, *on_gpu)
        if values == written:
            held = now
        else:
            if held is not None and written is not None:
                out.write(_line(held, written))
            out.write(_line(now, values))
            written, held = values, None
        if now - flushed >= FLUSH_EVERY_S:
            out.flush()
            flushed = now
        ticks = max(ticks + 1, int((now - start) / interval_s))
        if poller.poll(max(0.0, start + ticks * interval_s - time.monotonic()) * 1000):
            told = os.read(control, 64)
            if not told:
                break
            if watch is not None:
                watch.transfers = told.endswith(b"+")
        now = time.monotonic()
    if held is not None and written is not None:
        out.write(_line(held, written))
    if watch is not None:
        out.writelines(f"{note}\n" for note in watch.notes())
    out.flush()


def _watch(device: str, pid: int, *, linux: bool) -> GpuWatch:
    from prunebench.measure.devices.gpu_watch import GpuWatch

    return GpuWatch(device, (lambda: linux_tree(pid)) if linux else (lambda: {pid}))


def _line(moment: float, values: Sample) -> str:
    return (
        " ".join([f"{moment:.4f}", *("-" if value is None else str(value) for value in values)])
        + "\n"
    )


def main(arguments: list[str]) -> None:
    """Sample as the command line says until the standard input ends."""
    pid, interval_s, *gpu = arguments
    sample(int(pid), float(interval_s), sys.stdin.fileno(), sys.stdout, gpu=gpu[0] if gpu else None)
    os._exit(0)  # a thread that hangs in NVML must not hold the interpreter


if __name__ == "__main__":
    main(sys.argv[1:])
