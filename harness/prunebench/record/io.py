"""What loading moved from disk to the device, and what generation reads from memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunebench.record.devices import PcieTraffic
from prunebench.schema import Part


class LoadIO(Part):
    """Loading the model: from the weight files into host memory, and from there to the device."""

    bytes: int = Field(description="size of the weight files")
    seconds: float | None
    not_measurable: str | None = Field(
        None, description="why no time is given, if something else used the machine meanwhile"
    )
    host_s: float | None = Field(None, description="from the files into host memory")
    device_s: float | None = Field(
        None, description="from host memory to the device; None if both happened in one step"
    )
    device_bytes: int | None = Field(None, description="moved to the device")
    pcie: PcieTraffic | None = None
    disk_read_bytes: int | None = Field(
        description="read from the block device, by the kernel's count"
    )
    cache: Literal["cold", "warm", "mixed"] | None = Field(
        description="state of the page cache, derived from the two byte counts"
    )


class GenerationIO(Part):
    """The I/O floor of generation: one token must read these bytes, so it takes `floor_s` or more.

    The floor is (weight_bytes + kv_cache_bytes) / bandwidth_bytes_per_s.
    """

    prompt: int
    new_tokens: int
    batch_size: int
    weight_bytes: int
    kv_cache_bytes: int = Field(description="mean over the generated tokens")
    bandwidth_bytes_per_s: float
    bandwidth_source: str
    floor_s: float
    measured_s: float | None = Field(
        description="median inter-token latency; None if it was not measurable"
    )
    utilisation: float | None = Field(description="floor_s / measured_s")


class IO(Part):
    """I/O of loading, and of generation at every shape."""

    load: LoadIO
    generation: list[GenerationIO]
    generation_reason: str | None = Field(None, description="why there is no I/O floor")
