"""The watch over a device's timed spans: what could disturb a figure that is taken there."""

from __future__ import annotations

from prunebench.measure.devices.disturbance import CpuWatch, Watch, Watches
from prunebench.measure.devices.gpu_disturbance import GpuWatch


def watch_of(device: str) -> Watch:
    """``device``: 'cpu' or 'cuda:N'. A GPU waits for the thread that launches its kernels, so the
    CPU is watched there too.
    """
    return CpuWatch() if not device.startswith("cuda") else Watches(CpuWatch(), GpuWatch(device))
