"""What one experiment is: a model, a method with its options, what is measured, and a seed.

A `Cell` is complete: every default is filled in and every name is resolved. So its content hash
tells whether two experiments are the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import Field, PrivateAttr

from prunebench.experiment.measures import LatencySpec, PerplexitySpec, TaskSpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import (
    AllocationRef,
    MethodRef,
    MetricRef,
    RecoveryRef,
    RuntimeRef,
    label_of,
)
from prunebench.experiment.text import CalibrationSpec
from prunebench.schema import Frozen

PROTOCOL = 2
"""Raised when the harness measures something differently, so that old cells count as different."""

# Fields that `Cell.identity` leaves out or writes in another form. All other fields go into the
# hash as they are, so a new field changes every id unless it is listed here.
_NOT_DUMPED = {
    "model",
    "method",
    "allocation",
    "recovery",
    "calibration",
    "perplexity",
    "latency",
    "tasks",
    "metrics",
    "runtimes",
    "time_limit_s",
    "memory_limit_bytes",
    "keep_model",
    "gpus",
}


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
    runtimes: tuple[RuntimeRef, ...] = ()
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    gpus: int | None = Field(
        None,
        gt=0,
        description="GPUs for this cell; null: one, or all if the model has a `device_map`",
    )
    keep_model: bool = Field(False, description="save the pruned model in the run folder")
    time_limit_s: float | None = Field(
        None, gt=0, description="end the cell after this many seconds"
    )
    memory_limit_bytes: int | None = Field(
        None, gt=0, description="end the cell if it holds more memory than this"
    )
    protocol: int = PROTOCOL

    _stored_id: str | None = PrivateAttr(None)

    @property
    def id(self) -> str:
        """Content hash of everything that decides the outcome, 16 hexadecimal digits."""
        return self._stored_id or self.content_id

    @cached_property
    def content_id(self) -> str:
        """The `id` of a cell that this version planned."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; one whose content is changed by ``update`` has an id of its own."""
        found = super().model_copy(update=update, deep=deep)
        if update:
            found.__dict__.pop("content_id", None)
            found._stored_id = None
        return found

    @property
    def label(self) -> str:
        """Method, allocation and recovery with the options that the suite names.

        It is for people: cells of different models or seeds may share a label.
        """
        return label_of(self.method, self.allocation, self.recovery)

    def stored_as(self, identifier: str) -> Self:
        """The same cell under the id of an older run.

        What decides an outcome can change between versions: a sampler that draws other windows now
        gives new cells new ids. A cell of an older run keeps the one that its files are named by.
        """
        if identifier == self.id:
            return self
        found = self.model_copy()
        found._stored_id = identifier
        return found

    def identity(self) -> dict[str, Any]:
        """The part that `id` hashes.

        Labels, limits and what is kept afterwards are left out, because they change no outcome.
        """
        data = self.model_dump(mode="json", exclude=_NOT_DUMPED)
        data["model"] = self.model.identity()
        data["method"] = self.method.identity()
        data["calibration"] = self.calibration and self.calibration.identity()
        data["perplexity"] = [spec.identity() for spec in self.perplexity]
        data["latency"] = [spec.identity() for spec in self.latency]
        # These parts were added later. A cell without them leaves the key out, and so keeps the id
        # that it had in older runs.
        if self.tasks:
            data["tasks"] = [spec.identity() for spec in self.tasks]
        if self.metrics:
            data["metrics"] = [ref.identity() for ref in self.metrics]
        if self.runtimes:
            data["runtimes"] = [ref.identity() for ref in self.runtimes]
        if self.allocation is not None:
            data["allocation"] = self.allocation.identity()
        if self.recovery is not None:
            data["recovery"] = self.recovery.identity()
        return data
