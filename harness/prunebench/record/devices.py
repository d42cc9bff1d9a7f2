"""What the devices report: energy, transfers, DRAM traffic, and who else was using them.

A figure that is not available is None, never zero; `reason` says why. Units are part of the keys:
`_s` seconds, `_w` watts, `_bytes` bytes, `joules`.
"""

from __future__ import annotations

from pydantic import Field

from prunebench.schema import Part


class Energy(Part):
    """The energy of one measured interval."""

    joules: float
    seconds: float
    source: str = Field(description="which counter, and what it covers")

    @property
    def mean_w(self) -> float:
        return self.joules / self.seconds


class EnergyResult(Part):
    """Energy of the prompt phase and of the generation phase, idle power included."""

    prompt: int | None = Field(None, description="prompt tokens of the measured shape")
    new_tokens: int | None = None
    batch_size: int | None = None
    joules_per_prompt: float | None = Field(
        None, description="prompt phase, for each sequence of the batch"
    )
    joules_per_token: float | None = Field(
        None, description="generation phase, for each generated token"
    )
    prompt_w: float | None = Field(None, description="mean power over the prompt rounds")
    generation_w: float | None = Field(None, description="mean power over the generation rounds")
    idle_w: float | None = Field(
        None, description="power while this process waits; not subtracted from the others"
    )
    prompt_s: float | None = Field(None, description="how long the prompt rounds ran")
    generation_s: float | None = None
    source: str | None = None
    reason: str | None = Field(None, description="why a figure is not available")


class PcieTraffic(Part):
    """PCIe throughput of the GPU while loading, sampled; NVML has no count of all bytes.

    Each sample is NVML's mean over a window of 20 ms.
    """

    samples: int
    rx_mean_bytes_per_s: float | None = Field(description="host to device")
    rx_peak_bytes_per_s: float | None
    tx_mean_bytes_per_s: float | None = Field(description="device to host")
    tx_peak_bytes_per_s: float | None
    generation: int | None = Field(
        description="of the link, the highest seen while loading: an idle link falls back"
    )
    width: int | None = Field(description="lanes")
    generation_limit: int | None = Field(description="the most that this GPU can do in this slot")
    width_limit: int | None


class DramTraffic(Part):
    """Traffic of the GPU's memory between two samples of NVML's GPM counters."""

    utilisation: float | None = Field(
        description="share of the peak bandwidth, mean over the interval"
    )
    seconds: float
    peak_bytes_per_s: float | None = Field(
        description="2 x maximum memory clock x bus width, by NVML"
    )
    reason: str | None = None


class GpuSharing(Part):
    """Whether other processes used the GPU."""

    foreign: bool | None = Field(description="None if that cannot be known")
    pids: list[int] = Field(
        default_factory=list, description="of the other processes, as NVML numbers them"
    )
    phases: list[str] = Field(default_factory=list, description="in which they were seen")
    memory_before_bytes: int | None = Field(
        None, description="in use on the GPU when the cell began"
    )
    utilisation_before: float | None = Field(
        None, description="share of time with a kernel running when the cell began"
    )
    note: str


class CpuLoad(Part):
    """What others did to the CPU cores that this process may use, during one phase."""

    phase: str
    wall_s: float
    others_share: float = Field(description="CPU seconds of other processes / (wall time x cores)")
    steal_share: float = Field(
        description="CPU seconds that the hypervisor kept / (wall time x cores)"
    )


class Contention(Part):
    """Who else used the machine while the cell ran."""

    gpu: GpuSharing | None = Field(None, description="None on a CPU")
    cpu: list[CpuLoad] = Field(default_factory=list)
    cpu_reason: str | None = Field(None, description="why the CPU's load is not available")
