"""Whether another process used the GPU, or the GPU slowed itself down, while a sample was timed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.nvml import Nvml, count

OTHERS = 5
"""Disturbed if another process's kernels ran for more than this percentage of a sample period."""
_SLOWED = {
    0x08: "a hardware slowdown",
    0x20: "its temperature, by the driver",
    0x40: "its temperature, by the hardware",
    0x80: "the power supply",
}
"""NVML's reasons for lower clocks that come and go; the power cap (0x4) holds for every round."""


class Reading(NamedTuple):
    """What NVML tells at one moment."""

    slowed: int
    """Bits of the reasons for lower clocks."""
    newest_us: int
    """Time of the newest utilisation sample."""
    others: int
    """Highest utilisation of another process since the reading before, per cent."""


class GpuWatch:
    """Disturbance of one GPU, ``device`` as torch names it ('cuda:0'), through NVML."""

    def __init__(self, device: str) -> None:
        self._nvml = Nvml()
        self._gpu = torch_gpu(self._nvml, device)
        self._newest_us = 0
        self.blind: str | None = None
        if self._gpu is None:
            self.blind = f"NVML does not show {device}: {self._nvml.reason or 'no such GPU'}"

    def read(self) -> Reading | None:
        """None if nothing can be told."""
        if self._gpu is None:
            return None
        handle = self._gpu.handle
        slowed = count(self._nvml.call("nvmlDeviceGetCurrentClocksEventReasons", handle))
        samples: list[Any] = (
            self._nvml.call("nvmlDeviceGetProcessUtilization", handle, self._newest_us) or []
        )
        ours = os.getpid()
        others = [count(one.smUtil) or 0 for one in samples if one.pid != ours]
        self._newest_us = max([self._newest_us, *(one.timeStamp for one in samples)])
        return Reading(slowed or 0, self._newest_us, max(others, default=0))

    def disturbed(self, before: Reading | None, after: Reading | None) -> str | None:
        if before is None or after is None:
            return None
        for bit, reason in _SLOWED.items():
            if (before.slowed | after.slowed) & bit:
                return f"the GPU lowered its clocks because of {reason}"
        if after.others > OTHERS:
            return f"another process used the GPU ({after.others} % of the time)"
        return None
