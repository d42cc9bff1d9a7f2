"""The record of one cell, stored as one JSON file.

Units are part of the keys: `_s` seconds, `_bytes` bytes. A figure that is not available is None,
never zero. Raise `SCHEMA` when a key changes its meaning, and add a step to
`prunebench.record.codec` that reads the records of before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from prunebench.experiment.cell import Cell
from prunebench.record.audit import Audit
from prunebench.record.devices import Contention, EnergyResult
from prunebench.record.io import IO
from prunebench.record.memory import Memory, Timeline
from prunebench.record.quality import Quality
from prunebench.record.runtimes import RuntimeResult
from prunebench.record.speed import LatencySamples, Speed
from prunebench.schema import Part

SCHEMA = 2

Status = Literal["ok", "failed", "timeout", "out-of-memory", "skipped"]


def utc_now() -> str:
    """The current time as records store it: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class PhaseTime(Part):
    """How long a phase took."""

    phase: str
    seconds: float
    cpu_s: float | None = Field(
        None, description="CPU time of the cell's process meanwhile, all threads together"
    )


class Cost(Part):
    """What pruning and recovering cost, and how the cell spent its time."""

    prune_s: float = Field(description="the method alone, including its calibration forwards")
    calibration_tokens: int
    calibration_sha256: str | None
    peak_rss_bytes: int | None = Field(description="while pruning")
    peak_gpu_bytes: int | None = Field(None, description="on the GPU while pruning")
    peak_gpu_source: str | None = Field(None, description="who counted `peak_gpu_bytes`")
    recover_s: float | None = Field(
        None, description="the recovery alone, including its training; None without a recovery"
    )
    recover_tokens: int | None = Field(
        None, description="tokens seen in training, each counted as often as it was seen"
    )
    recover_sha256: str | None = Field(None, description="of the training windows")
    total_s: float
    phases: list[PhaseTime]

    @property
    def measured_s(self) -> float:
        """Time in phases: fetch, load, prune and measure; the rest of a run is the harness."""
        return sum(entry.seconds for entry in self.phases)


class Samples(Part):
    """Raw samples behind the summaries."""

    latency: list[LatencySamples]
    memory: Timeline | None


class Error(Part):
    """Why the cell gave no result."""

    phase: str
    type: str = Field(description="exception class, signal, or 'timeout'")
    message: str
    hint: str | None = None
    log_tail: str
    command: str = Field(description="reproduces the cell")
    peak_rss_bytes: int | None = None


class Record(Part):
    """Everything known about one cell."""

    schema_version: int = Field(SCHEMA, alias="schema")
    id: str
    cell: Cell
    status: Status
    started: str = Field(description="UTC, ISO 8601")
    finished: str
    audit: Audit | None = None
    quality: Quality | None = None
    speed: Speed | None = None
    runtimes: list[RuntimeResult] = Field(
        default_factory=list, description="in the order of `cell.runtimes`"
    )
    memory: Memory | None = None
    contention: Contention | None = None
    energy: EnergyResult | None = None
    io: IO | None = None
    cost: Cost | None = None
    samples: Samples | None = None
    method_notes: dict[str, Any] = Field(
        default_factory=dict, description="what the method says about itself; not verified"
    )
    recovery_notes: dict[str, Any] = Field(
        default_factory=dict, description="what the recovery says about itself; not verified"
    )
    flags: list[str] = Field(
        default_factory=list,
        description="side effects that a method, recovery or metric left behind, metrics "
        "without a figure, and what a checkpoint holds and the model does not use; "
        "one sentence each",
    )
    provenance: dict[str, Any] = Field(default_factory=dict)
    error: Error | None = None
