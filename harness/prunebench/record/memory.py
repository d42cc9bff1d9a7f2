"""How much memory the cell used, at its peak and over time. All sizes are in bytes."""

from __future__ import annotations

from pydantic import Field

from prunebench.schema import Part

# In these phases memory also holds a buffer of the harness, the dense model or second copies of
# weights, so their peaks are not the model's own.
NOT_THE_MODEL_ALONE = (
    "metrics",
    "convert",
    "runtimes",
    "bandwidth",
    "latency",
    "energy",
    "2:4 kernels",
)


class GpuMemory(Part):
    """Peaks on the GPU, of one phase or of the whole cell."""

    nvml_device_bytes: int | None
    nvml_process_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None


class PhaseMemory(Part):
    """The peaks of one phase."""

    phase: str
    peak_rss_bytes: int | None
    uss_bytes: int | None = Field(
        None, description="unique set size of the process when the phase ended"
    )
    gpu: GpuMemory | None = None


class Memory(Part):
    """The peaks of the whole cell, and how they were sampled."""

    source: str
    interval_s: float
    baseline_rss_bytes: int | None = Field(
        description="before the model is loaded: the interpreter and libraries"
    )
    peak_rss_bytes: int | None
    uss_bytes: int | None = Field(description="unique set size after the measurements")
    gpu: GpuMemory | None = None
    phases: list[PhaseMemory]
    problem: str | None = Field(None, description="what went wrong with the sampling, if anything")


class PhaseSpan(Part):
    """When a phase ran, in seconds since the cell began."""

    phase: str
    start_s: float
    end_s: float


class Timeline(Part):
    """Memory over time, decimated to at most 600 points."""

    time_s: list[float]
    rss_bytes: list[int]
    gpu_bytes: list[int] | None = Field(
        None, description="of the process if known, otherwise of the whole device"
    )
    gpu_device_bytes: list[int] | None = Field(
        None, description="of the whole device, if `gpu_bytes` is of the process"
    )
    phases: list[PhaseSpan]
