"""What one experiment is: a model, a method with its options, the protocols and a seed.

A `Cell` is complete: all defaults are filled in and all names are resolved, so that its content hash
says whether two experiments are the same one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from prunebench.experiment.measures import LatencySpec, PerplexitySpec, TaskSpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.text import CalibrationSpec
from prunebench.schema import Frozen

PROTOCOL = 2
"""Raised when the harness measures something differently, so that old cells are never taken for new ones."""


class PluginRef(Frozen):
    """Something that a plugin registered, with all its options."""

    name: str
    distribution: str = Field(description="the distribution that provides it")
    version: str = Field(description="and that distribution's version")
    options: dict[str, Any] = Field(
        default_factory=dict, description="complete, defaults filled in"
    )
    given: dict[str, Any] = Field(
        default_factory=dict, description="the options that the suite names, for the label"
    )

    @property
    def label(self) -> str:
        return " ".join(
            [self.name, *(f"{key}={_short(value)}" for key, value in self.given.items())]
        )


class MethodRef(PluginRef):
    """A pruning method with all its options."""


class AllocationRef(PluginRef):
    """How the method's share is spread over the model."""


class RecoveryRef(PluginRef):
    """What repairs the pruned model, and the windows that it trains on."""

    data: CalibrationSpec


class MetricRef(PluginRef):
    """A metric beside perplexity and tasks, and the text that it looks at."""

    data: PerplexitySpec | None = Field(
        None, description="its windows; None where it looks at no text"
    )

    def identity(self) -> dict[str, Any]:
        """What decides its figures."""
        named = self.model_dump(mode="json", exclude={"given", "data"})
        return {**named, "data": self.data and self.data.identity()}


class Cell(Frozen):
    """One model x one method x its options x one seed, under one protocol."""

    model: ModelRef
    method: MethodRef
    allocation: AllocationRef | None = None
    recovery: RecoveryRef | None = None
    calibration: CalibrationSpec | None = None
    perplexity: tuple[PerplexitySpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    metrics: tuple[MetricRef, ...] = ()
    latency: tuple[LatencySpec, ...] = ()
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    gpus: int | None = Field(
        None,
        gt=0,
        description="GPUs that an engine gives it; one, or all for a model spread over devices",
    )
    keep_model: bool = Field(False, description="save the pruned model in the run folder")
    time_limit_s: float | None = Field(
        None, gt=0, description="the cell is ended after so many seconds"
    )
    memory_limit_bytes: int | None = Field(
        None, gt=0, description="the cell is ended where it holds more memory"
    )
    protocol: int = PROTOCOL

    @property
    def id(self) -> str:
        """Content hash of everything that decides the outcome, 16 hexadecimal digits."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Method, allocation and recovery with the options that the suite names; for people, not unique over models and seeds."""
        return label_of(self.method, self.allocation, self.recovery)

    def identity(self) -> dict[str, Any]:
        """The part that `id` hashes. Labels, time limits and what is kept afterwards do not change an outcome."""
        method = self.method.model_dump(mode="json", exclude={"given"})
        data = self.model_dump(
            mode="json",
            exclude={
                "model",
                "method",
                "allocation",
                "recovery",
                "calibration",
                "perplexity",
                "tasks",
                "metrics",
                "time_limit_s",
                "memory_limit_bytes",
                "keep_model",
                "gpus",
            },
        )
        data["model"] = self.model.identity()
        data["method"] = method
        data["calibration"] = self.calibration and _with_corpus(self.calibration)
        data["perplexity"] = [spec.identity() for spec in self.perplexity]
        # What came later is left out where there is none: such cells keep the ids of older runs.
        if self.tasks:
            data["tasks"] = [spec.identity() for spec in self.tasks]
        if self.metrics:
            data["metrics"] = [ref.identity() for ref in self.metrics]
        if self.allocation is not None:
            data["allocation"] = self.allocation.model_dump(mode="json", exclude={"given"})
        if self.recovery is not None:
            recovery = self.recovery.model_dump(mode="json", exclude={"given", "data"})
            data["recovery"] = {**recovery, "data": _with_corpus(self.recovery.data)}
        return data


def label_of(
    method: MethodRef, allocation: AllocationRef | None, recovery: RecoveryRef | None
) -> str:
    """What is done to a model, in a few words: 'wanda sparsity=0.7 allocation=owl + lora rank=8'."""
    spread = "" if allocation is None else f" allocation={allocation.label}"
    return f"{method.label}{spread}" + ("" if recovery is None else f" + {recovery.label}")


def _with_corpus(spec: CalibrationSpec) -> dict[str, Any]:
    return {**spec.model_dump(mode="json", exclude={"corpus"}), "corpus": spec.corpus.identity()}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
