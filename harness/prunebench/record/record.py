"""What one cell gave: the record, one JSON file a cell. Units stand in the keys.

A figure that could not be had is None ("not available"), never zero. `schema` is raised when a key changes its meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prunebench.experiment.cell import Cell
from prunebench.record.device_results import Contention, DramTraffic, EnergyResult
from prunebench.record.results import (
    IO,
    Audit,
    Breakdown,
    Latency,
    LatencySamples,
    Memory,
    MetricResult,
    Perplexity,
    TaskResult,
    Timeline,
)
from prunebench.schema import Part

SCHEMA = 2

Status = Literal["ok", "failed", "timeout", "out-of-memory", "skipped"]


class PhaseTime(Part):
    phase: str
    seconds: float


class Cost(Part):
    """What pruning and recovering cost, and where the cell's time went."""

    prune_s: float = Field(description="the method alone, calibration forwards included")
    calibration_tokens: int
    calibration_sha256: str | None
    peak_rss_bytes: int | None = Field(description="while pruning")
    peak_gpu_bytes: int | None = Field(None, description="on the GPU while pruning")
    peak_gpu_source: str | None = Field(None, description="who counted that")
    recover_s: float | None = Field(
        None, description="the recovery alone, training included; None without one"
    )
    recover_tokens: int | None = Field(
        None, description="tokens seen in its training, each as often as it was seen"
    )
    recover_sha256: str | None = Field(None, description="of its windows")
    total_s: float
    phases: list[PhaseTime]

    @property
    def measured_s(self) -> float:
        """Time in phases: fetch, load, prune and measure; the rest of a run is the harness itself."""
        return sum(entry.seconds for entry in self.phases)


class Samples(Part):
    latency: list[LatencySamples]
    memory: Timeline | None


class Error(Part):
    """Why there is no result."""

    phase: str
    type: str = Field(description="exception class, signal, or 'timeout'")
    message: str
    hint: str | None = None
    log_tail: str
    command: str = Field(description="reproduces the cell")
    peak_rss_bytes: int | None = None


class Quality(Part):
    """What the pruned model is worth."""

    perplexity: list[Perplexity]
    tasks: list[TaskResult] = Field(default_factory=list)
    metrics: list[MetricResult] = Field(default_factory=list, description="of plugins")


class Speed(Part):
    """What it costs in time; one entry a shape, and those with 2:4 kernels behind them."""

    latency: list[Latency]
    breakdown: Breakdown | None = Field(None, description="of the first shape")
    dram: DramTraffic | None = Field(
        None, description="of the GPU's memory in the generation phase, by its counters"
    )


class Record(Part):
    """Everything that is known of one cell."""

    schema_version: int = Field(SCHEMA, alias="schema")
    id: str
    cell: Cell
    status: Status
    started: str = Field(description="UTC, ISO 8601")
    finished: str
    audit: Audit | None = None
    quality: Quality | None = None
    speed: Speed | None = None
    memory: Memory | None = None
    contention: Contention | None = None
    energy: EnergyResult | None = None
    io: IO | None = None
    cost: Cost | None = None
    samples: Samples | None = None
    method_notes: dict[str, Any] = Field(
        default_factory=dict, description="what the method says of itself; not trusted"
    )
    recovery_notes: dict[str, Any] = Field(
        default_factory=dict, description="what the recovery says of itself"
    )
    flags: list[str] = Field(
        default_factory=list,
        description="what method, recovery or a metric changed for others and left behind, and metrics without a figure: one sentence each",
    )
    provenance: dict[str, Any] = Field(default_factory=dict)
    error: Error | None = None
