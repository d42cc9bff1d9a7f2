"""One GPU, or one instance of a split one (MIG), as NVML describes it. What cannot be had is None."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.measure.devices.nvml import Nvml

_NOT_AVAILABLE = 1 << 63
"""NVML writes 'value not available' as all ones; bindings differ in whether they turn that into None."""
_KILO = 1000
_TX, _RX = 0, 1  # NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES
_MEMORY_CLOCK = 2  # NVML_CLOCK_MEM


@dataclass(frozen=True)
class GpuDevice:
    """One GPU as NVML numbers it: physical order, blind to CUDA_VISIBLE_DEVICES."""

    index: int | None
    name: str | None
    uuid: str | None
    total_bytes: int | None


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU. In a container ``pid`` is the host's, which is not the one that we know."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True)
class PcieLink:
    """Generation and lanes of the link, now and at most."""

    generation: int | None
    width: int | None
    generation_limit: int | None
    width_limit: int | None


@dataclass(frozen=True)
class Gpu:
    """``parent`` is the whole GPU's handle where ``handle`` is one of its MIG instances, if NVML gives it."""

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
            uuid=text(self._ask("nvmlDeviceGetUUID")),
            total_bytes=count(getattr(memory, "total", None)),
        )

    def memory_used(self) -> int | None:
        """Bytes in use on the GPU or instance, by every process and the driver."""
        return count(getattr(self._ask("nvmlDeviceGetMemoryInfo"), "used", None))

    def processes(self) -> list[GpuProcess] | None:
        """Every process on the GPU; None where NVML does not list them.

        A process that computes and draws stands in two lists with the same figure: the larger counts. One that
        stands in a list several times is on several instances: their sum counts.
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

    def process_memory(self, pids: Collection[int]) -> int | None:
        """Bytes that these processes hold on the GPU; None where NVML lists none of them or leaves the figure open."""
        return own_bytes(self.processes(), pids)

    def utilisation(self) -> float | None:
        """Share of NVML's last sample period (up to a second) in which a kernel ran, whosever."""
        value = count(getattr(self._ask("nvmlDeviceGetUtilizationRates"), "gpu", None))
        return None if value is None else value / 100

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded, of the whole GPU (Volta and later); None for a MIG instance."""
        value = None if self.mig else count(self._ask("nvmlDeviceGetTotalEnergyConsumption"))
        return None if value is None else value / 1e3

    def power_w(self) -> float | None:
        """Watts of the whole GPU, on most GPUs a mean over the last second; None for a MIG instance."""
        value = None if self.mig else count(self._ask("nvmlDeviceGetPowerUsage"))
        return None if value is None else value / 1e3

    def pcie_bytes_per_s(self) -> tuple[float | None, float | None]:
        """Device to host, host to device. Each is a window of 20 ms, in which the call waits. NVML counts in KB."""
        tx, rx = (
            count(self._ask("nvmlDeviceGetPcieThroughput", counter)) for counter in (_TX, _RX)
        )
        return None if tx is None else tx * float(_KILO), None if rx is None else rx * float(_KILO)

    def pcie_link(self) -> PcieLink:
        names = (
            "CurrPcieLinkGeneration",
            "CurrPcieLinkWidth",
            "MaxPcieLinkGeneration",
            "MaxPcieLinkWidth",
        )
        return PcieLink(*(count(self._ask(f"nvmlDeviceGet{name}")) for name in names))

    def peak_bytes_per_s(self) -> float | None:
        """What the memory could move: two transfers a clock (all HBM and GDDR as NVML gives their clock)."""
        clock_mhz = count(self._ask("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK))
        width_bits = count(self._ask("nvmlDeviceGetMemoryBusWidth"))
        return None if not clock_mhz or not width_bits else 2 * clock_mhz * 1e6 * width_bits / 8

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self.nvml.call(name, self.handle, *arguments)


def own_bytes(processes: Collection[GpuProcess] | None, pids: Collection[int]) -> int | None:
    """The sum over those of the ``processes`` that are in ``pids``; None where no figure is known."""
    known = [
        one.used_bytes for one in processes or () if one.pid in pids and one.used_bytes is not None
    ]
    return sum(known) if known else None


def text(value: Any) -> str | None:
    """A string of NVML; older bindings give bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def count(value: Any) -> int | None:
    """A number of NVML, None where it stands for 'not available'."""
    return value if isinstance(value, int) and 0 <= value < _NOT_AVAILABLE else None


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
