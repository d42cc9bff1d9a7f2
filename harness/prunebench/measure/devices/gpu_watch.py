"""The sampler's eye on the GPU: NVML read by a thread of its own, so that an NVML that hangs stops nothing else.

What it sees besides memory it says in lines for `gpu_log`:
`first SECONDS BYTES PERCENT`, the device before anything else; `pids SECONDS OWN TREE PID:BYTES ...` whenever the set
of processes on the GPU changes, with how many of them and how many in all are of the watched tree; `pcie SECONDS TX
RX` and `link GENERATION WIDTH LIMIT LIMIT` while transfers are asked for; `problem TEXT`. `-` is not available.

Imports the standard library only; NVML comes in when the thread starts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunebench.measure.devices.gpu import Gpu

EVERY_S = 0.05
"""NVML's process query takes about a millisecond."""
SILENT_S = 2.0
"""A reading older than this is no reading."""

Reading = tuple[
    int | None, int | None
]  # bytes of the watched processes, bytes in use on the device


class GpuWatch:
    """Watches the GPU that torch calls ``device``. ``tree`` gives the pids of the process and its descendants."""

    def __init__(self, device: str, tree: Callable[[], set[int]]) -> None:
        self.transfers = False
        self._device = device
        self._tree = tree
        self._own = tree()
        self._latest: Reading = (None, None)
        self._read_at = time.monotonic()
        self._watching = True
        self._notes: deque[str] = deque()
        self._pids: set[int] | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def latest(self, now: float) -> Reading:
        """The last reading; nothing where NVML has not answered for two seconds."""
        if self._watching and now - self._read_at > SILENT_S:
            self._watching = False
            self._notes.append(f"problem NVML has not answered for {SILENT_S:g} s")
            self._latest = (None, None)
        return self._latest

    def notes(self) -> list[str]:
        """Lines since the last call."""
        found = []
        while self._notes:
            found.append(self._notes.popleft())
        return found

    def _run(self) -> None:
        from prunebench.measure.devices.gpu_lookup import torch_gpu
        from prunebench.measure.devices.nvml import Nvml

        nvml = Nvml()
        gpu = torch_gpu(nvml, self._device)
        if gpu is None:
            self._end(nvml.lost or nvml.reason or "NVML shows no GPU that this process may use")
            return
        self._notes.append(
            f"first {time.monotonic():.4f} {_figure(gpu.memory_used())} {_share(gpu.utilisation())}"
        )
        while nvml.lost is None:
            reading = self._read(gpu)
            self._read_at = time.monotonic()
            if self._watching:
                self._latest = reading
            if self.transfers:
                self._transfers(gpu)
            time.sleep(EVERY_S)
        self._end(nvml.lost)

    def _end(self, problem: str) -> None:
        self._watching = False
        self._latest = (None, None)
        self._notes.append("problem " + " ".join(problem.split()))

    def _read(self, gpu: Gpu) -> Reading:
        from prunebench.measure.devices.gpu import own_bytes

        processes = gpu.processes()
        pids = {one.pid for one in processes or ()}
        if pids != self._pids:
            if not pids <= self._own:  # a child of ours may be new
                self._own |= self._tree()  # those that have ended may be listed for a while
            self._pids = pids
            listed = " ".join(
                f"{one.pid}:{_figure(one.used_bytes)}"
                for one in processes or ()
                if one.pid not in self._own
            )
            self._notes.append(
                f"pids {time.monotonic():.4f} {len(pids & self._own)} {len(self._own)} {listed}".rstrip()
            )
        return own_bytes(processes, self._own), gpu.memory_used()

    def _transfers(self, gpu: Gpu) -> None:
        sent, received = gpu.pcie_bytes_per_s()
        link = gpu.pcie_link()
        self._notes.append(f"pcie {time.monotonic():.4f} {_figure(sent)} {_figure(received)}")
        numbers = (link.generation, link.width, link.generation_limit, link.width_limit)
        self._notes.append("link " + " ".join(map(_figure, numbers)))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
