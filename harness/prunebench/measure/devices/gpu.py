"""One GPU, or one instance of a split GPU (MIG), as NVML describes it. None is "not available"."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from prunebench.measure.devices.nvml import Nvml, count, text

_TX, _RX = 0, 1  # NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES
_MEMORY_CLOCK = 2  # NVML_CLOCK_MEM


@dataclass(frozen=True)
class GpuDevice:
    """One GPU as NVML numbers it: in bus order, whatever CUDA_VISIBLE_DEVICES says."""

    index: int | None
    name: str | None
    total_bytes: int | None


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU. In a container ``pid`` is the host's number, not the container's."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True)
class PcieLink:
    """PCIe generation and number of lanes: in use now, and the most that the GPU can use."""

    generation: int | None
    width: int | None
    generation_limit: int | None
    width_limit: int | None


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance: then ``parent`` is the whole GPU's handle if NVML has it.

    ``split`` marks an instance whose parent NVML may not have told.
    """

    nvml: Nvml
    handle: Any
    index: int | None
    parent: Any = None
    split: bool = False

    @property
    def mig(self) -> bool:
        return self.split or self.parent is not None

    def described(self) -> GpuDevice:
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return GpuDevice(
            index=self.index,
            name=text(self._ask("nvmlDeviceGetName")),
            total_bytes=count(getattr(memory, "total", None)),
        )

    def memory_used(self) -> int | None:
        """Bytes in use on the GPU or instance, by every process and the driver."""
        return count(getattr(self._ask("nvmlDeviceGetMemoryInfo"), "used", None))

    def processes(self) -> list[GpuProcess] | None:
        """Every process on the GPU; None if NVML does not list them.

        A process that both computes and draws is in two lists with the same figure: take the
        larger. A process that is in one list several times runs on several instances: add them up.
        """
        found: dict[int, int | None] = {}
        listed = False
        for query in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses",
        ):
            entries = self._ask(query)
            if entries is None:
                continue
            listed = True
            sums: dict[int, int | None] = {}
            for entry in entries:
                sums[entry.pid] = _sum(sums.get(entry.pid), count(entry.usedGpuMemory))
            for pid, used in sums.items():
                found[pid] = max(
                    (value for value in (found.get(pid), used) if value is not None), default=None
                )
        return [GpuProcess(pid, used) for pid, used in found.items()] if listed else None

    def utilisation(self) -> float | None:
        """Share (0 to 1) of the last sample period, up to 1 s, in which any kernel ran."""
        value = count(getattr(self._ask("nvmlDeviceGetUtilizationRates"), "gpu", None))
        return None if value is None else value / 100

    def energy_j(self) -> float | None:
        """Joules of the whole GPU since the driver was loaded (Volta and later).

        None for a MIG instance: NVML has no figure for a part of a GPU.
        """
        value = None if self.mig else count(self._ask("nvmlDeviceGetTotalEnergyConsumption"))
        return None if value is None else value / 1e3  # NVML counts in mJ

    def power_w(self) -> float | None:
        """Watts of the whole GPU, on most GPUs a mean over the last second.

        None for a MIG instance: NVML has no figure for a part of a GPU.
        """
        value = None if self.mig else count(self._ask("nvmlDeviceGetPowerUsage"))
        return None if value is None else value / 1e3  # NVML counts in mW

    def pcie_bytes_per_s(self) -> tuple[float | None, float | None]:
        """PCIe traffic (device to host, host to device), bytes per second.

        NVML measures each direction for 20 ms, and the call waits for that. It counts in kB.
        """
        tx, rx = (
            count(self._ask("nvmlDeviceGetPcieThroughput", counter)) for counter in (_TX, _RX)
        )
        return None if tx is None else tx * 1e3, None if rx is None else rx * 1e3

    def pcie_link(self) -> PcieLink:
        names = (
            "CurrPcieLinkGeneration",
            "CurrPcieLinkWidth",
            "MaxPcieLinkGeneration",
            "MaxPcieLinkWidth",
        )
        return PcieLink(*(count(self._ask(f"nvmlDeviceGet{name}")) for name in names))

    def peak_bytes_per_s(self) -> float | None:
        """Peak bandwidth of the GPU's memory: 2 transfers per clock x bus width.

        The factor 2 is right for all HBM and GDDR, given the clock that NVML reports for them.
        """
        clock_mhz = count(self._ask("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK))
        width_bits = count(self._ask("nvmlDeviceGetMemoryBusWidth"))
        return None if not clock_mhz or not width_bits else 2 * clock_mhz * 1e6 * width_bits / 8

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self.nvml.call(name, self.handle, *arguments)


def own_bytes(processes: Collection[GpuProcess] | None, pids: Collection[int]) -> int | None:
    """Bytes that the ``processes`` with these ``pids`` hold; None if no figure is known."""
    known = [
        one.used_bytes for one in processes or () if one.pid in pids and one.used_bytes is not None
    ]
    return sum(known) if known else None


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
