"""References to registered plugins, each with its complete options and its version."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.text import CalibrationSpec
from prunebench.schema import Frozen


class PluginRef(Frozen):
    """Something that a plugin registered, with all its options."""

    name: str
    distribution: str = Field(description="the distribution that provides it")
    version: str = Field(description="the version of that distribution")
    options: dict[str, Any] = Field(
        default_factory=dict, description="all options, defaults filled in"
    )
    given: dict[str, Any] = Field(
        default_factory=dict, description="only the options that the suite names, for the label"
    )
    later: tuple[str, ...] = Field(
        (), description="options that came later and have their default; not part of the identity"
    )

    @property
    def label(self) -> str:
        return " ".join(
            [self.name, *(f"{key}={_short(value)}" for key, value in self.given.items())]
        )

    def identity(self) -> dict[str, Any]:
        """The part that decides what the plugin does."""
        # ``given`` repeats a part of ``options``; spelling out a default must not change an id.
        data = self.model_dump(mode="json", exclude={"given", "later"})
        for name in self.later:
            data["options"].pop(name, None)
        return data


class MethodRef(PluginRef):
    """A pruning method."""


class AllocationRef(PluginRef):
    """An allocation: it gives each layer its own sparsity."""


class RecoveryRef(PluginRef):
    """A recovery: it repairs the pruned model by training on the windows of ``data``."""

    data: CalibrationSpec

    def identity(self) -> dict[str, Any]:
        """The part that decides the repair, the training windows among it."""
        return {**super().identity(), "data": self.data.identity()}


class MetricRef(PluginRef):
    """A metric beside perplexity and tasks."""

    data: PerplexitySpec | None = Field(
        None, description="the windows it reads; null if it reads no text"
    )

    def identity(self) -> dict[str, Any]:
        """The part that decides its figures."""
        return {**super().identity(), "data": self.data and self.data.identity()}


class RuntimeRef(PluginRef):
    """A runtime: the pruned model is timed there, too."""


def label_of(
    method: MethodRef, allocation: AllocationRef | None, recovery: RecoveryRef | None
) -> str:
    """What is done to a model: 'wanda sparsity=0.7 allocation=owl + lora rank=8'."""
    label = method.label
    if allocation is not None:
        label += f" allocation={allocation.label}"
    return label if recovery is None else f"{label} + {recovery.label}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
