"""Where energy figures come from: NVML's counter, NVML's power over time, or RAPL."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from prunebench.measure.devices import powercap
from prunebench.measure.devices.gpu import Gpu
from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.nvml import Nvml

POWER_EVERY_S = 0.02

PowerSample = tuple[float, float | None]
"""Time in seconds, power in watts; None if the GPU did not answer."""


class EnergySource(Protocol):
    """A counter of energy; ``name`` says which, for the record."""

    name: str

    def start(self) -> None:
        """Begin a stretch."""

    def stop(self) -> float | None:
        """Joules since `start`; None if the device stopped answering."""

    def close(self) -> None:
        """Give the device back."""


def rapl_source(powercap_root: Path) -> tuple[EnergySource | None, str | None]:
    """The counters of the CPU packages below ``powercap_root``, or None and why there are none."""
    domains, reason = powercap.packages(powercap_root)
    return (_Rapl(domains) if domains else None), reason


def gpu_source(device: str) -> tuple[EnergySource | None, str | None]:
    """The best source that NVML has for the GPU ``device``, or None and why there is none."""
    nvml = Nvml()
    gpu = torch_gpu(nvml, device)
    if gpu is None:
        reason = f"NVML: {nvml.reason or nvml.lost or 'it does not show the GPU in use'}"
    elif gpu.mig:
        reason = "NVML counts the energy of a whole GPU, not of a MIG instance"
    elif gpu.energy_j() is not None:
        return _Counter(gpu), None
    elif gpu.power_w() is not None:
        return _Power(gpu), None
    else:
        reason = (
            f"NVML: this GPU tells neither energy nor power{f' ({nvml.lost})' if nvml.lost else ''}"
        )
    nvml.close()
    return None, reason


class _Counter:
    """The GPU's own energy counter."""

    name = "NVML total energy counter, whole GPU"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._before: float | None = None

    def start(self) -> None:
        self._before = self._gpu.energy_j()

    def stop(self) -> float | None:
        after = self._gpu.energy_j()
        if after is None or self._before is None or after < self._before:
            return None  # the counter goes back only if the driver was loaded again
        return after - self._before

    def close(self) -> None:
        self._gpu.nvml.close()


class _Power:
    """The integral of the power that NVML reports. For GPUs without an energy counter."""

    name = (
        f"NVML power every {POWER_EVERY_S * 1000:g} ms, trapezoidal rule, whole GPU "
        "(each a mean of up to a second)"
    )

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._samples: list[PowerSample] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        # A reading at each end of the stretch, so that the integral covers all of it.
        self._samples, self._ended = [self._sample()], threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        self._end()
        return integral([*self._samples, self._sample()])

    def close(self) -> None:
        self._end()
        self._gpu.nvml.close()

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(POWER_EVERY_S):
            self._samples.append(self._sample())

    def _sample(self) -> PowerSample:
        return time.perf_counter(), self._gpu.power_w()

    def _end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def integral(samples: Sequence[PowerSample]) -> float | None:
    """Joules under the ``samples``, by the trapezoidal rule; None if one of them is missing."""
    joules = 0.0
    for (start, first), (end, last) in pairwise(samples):
        if first is None or last is None:
            return None
        joules += (end - start) * (first + last) / 2
    return joules


class _Rapl:
    """The counters of all CPU packages."""

    def __init__(self, domains: list[powercap.Domain]) -> None:
        self.name = (
            f"RAPL, {len(domains)} CPU package{'s' if len(domains) > 1 else ''}, without DRAM"
        )
        self._domains = domains
        self._before: list[int] = []

    def start(self) -> None:
        self._before = self._read() or []

    def stop(self) -> float | None:
        after = self._read()
        if not after or not self._before:
            return None
        return powercap.joules(self._domains, self._before, after)

    def close(self) -> None:
        """Nothing to do: every reading opens and closes its files."""

    def _read(self) -> list[int] | None:
        try:
            return [domain.read() for domain in self._domains]
        except (OSError, ValueError):
            return None
