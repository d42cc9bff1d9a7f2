"""The sampler's view of the GPU: a thread that reads NVML.

It is a thread of its own because a call of NVML can hang; that must not stop the other samples.
Besides memory it writes lines for `gpu_log`, with `-` for not available:

- `first SECONDS BYTES SHARE`: memory in use and utilisation (0 to 1) at the first look.
- `pids SECONDS OWN TREE PID:BYTES ...`: whenever the set of processes on the GPU changes. OWN of
  them belong to the watched tree, which has TREE processes; the other ones are listed.
- `pcie SECONDS TX RX` and `link GENERATION WIDTH LIMIT LIMIT`: while transfers are sampled.
- `problem TEXT`.

Imports the standard library only; the thread imports NVML when it starts.
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
"""A reading older than this does not count: NVML hangs."""

Reading = tuple[int | None, int | None]
"""Bytes of the watched processes, bytes in use on the device."""


class GpuReader:
    """Look at a GPU, and note what changed since the last look.

    ``tree`` gives the pids of the sampled process and its descendants. Lines go to ``notes``.
    """

    def __init__(
        self, gpu: Gpu, tree: Callable[[], set[int]], notes: deque[str], own: set[int]
    ) -> None:
        self._gpu = gpu
        self._tree = tree
        self._own = own
        self._notes = notes
        self._pids: set[int] | None = None

    def first(self, now: float) -> None:
        """Note what is on the GPU before anything else. Times are `time.monotonic` seconds."""
        used, share = self._gpu.memory_used(), self._gpu.utilisation()
        told = "-" if share is None else f"{share:.2f}"
        self._notes.append(f"first {now:.4f} {_figure(used)} {told}")

    def look(self, now: float) -> Reading:
        """Memory now; notes the processes on the GPU if they have changed."""
        from prunebench.measure.devices.gpu import own_bytes

        processes = self._gpu.processes()
        pids = {one.pid for one in processes or ()}
        if pids != self._pids:
            if not pids <= self._own:
                # An unknown process may be a new child of ours. Pids are only added, because NVML
                # lists a process for a while after its end.
                self._own |= self._tree()
            self._pids = pids
            others = [one for one in processes or () if one.pid not in self._own]
            listed = " ".join(f"{one.pid}:{_figure(one.used_bytes)}" for one in others)
            counts = f"{len(pids & self._own)} {len(self._own)}"
            self._notes.append(f"pids {now:.4f} {counts} {listed}".rstrip())
        return own_bytes(processes, self._own), self._gpu.memory_used()

    def transfers(self, now: float) -> None:
        """Note the PCIe traffic. The query takes NVML 40 ms."""
        sent, received = self._gpu.pcie_bytes_per_s()
        link = self._gpu.pcie_link()
        self._notes.append(f"pcie {now:.4f} {_figure(sent)} {_figure(received)}")
        numbers = (link.generation, link.width, link.generation_limit, link.width_limit)
        self._notes.append("link " + " ".join(map(_figure, numbers)))


class GpuWatch:
    """Watch the GPU that torch calls ``device`` in a thread; set ``transfers`` to sample PCIe too.

    The thread appends to `_notes` and the sampler takes from it. The operations of a deque are
    atomic, so there is no lock that a hanging NVML could hold.
    """

    def __init__(self, device: str, tree: Callable[[], set[int]]) -> None:
        self.transfers = False
        self._device = device
        self._tree = tree
        self._own = tree()  # now, not in the thread: a child that ends early belongs to us too
        self._latest: Reading = (None, None)
        self._read_at = time.monotonic()
        self._watching = True
        self._notes: deque[str] = deque()
        threading.Thread(target=self._run, daemon=True).start()

    def latest(self, now: float) -> Reading:
        """The last reading; (None, None) if NVML has not answered for two seconds."""
        if self._watching and now - self._read_at > SILENT_S:
            self._watching = False
            self._notes.append(f"problem NVML has not answered for {SILENT_S:g} s")
            self._latest = (None, None)
        return self._latest

    def notes(self) -> list[str]:
        """The lines since the last call."""
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
        reader = GpuReader(gpu, self._tree, self._notes, self._own)
        reader.first(time.monotonic())
        while nvml.lost is None:
            reading = reader.look(time.monotonic())
            self._read_at = time.monotonic()
            if self._watching:  # after a silence the readings stay out: what they mean is unclear
                self._latest = reading
            if self.transfers:
                reader.transfers(time.monotonic())
            time.sleep(EVERY_S)
        self._end(nvml.lost)

    def _end(self, problem: str) -> None:
        self._watching = False
        self._latest = (None, None)
        self._notes.append("problem " + " ".join(problem.split()))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
