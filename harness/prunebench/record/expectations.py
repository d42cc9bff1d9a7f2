"""Published figures that a suite holds its cells against: data beside the plan, never part of a cell's id."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prunebench.schema import Frozen

PERPLEXITY = "perplexity"
TASKS_MEAN = "tasks-mean"
MODEL_METRICS = ("parameters", "removed_share", "speedup")

TOLERANCES = {PERPLEXITY: 0.02, "parameters": 0.001, "removed_share": 0.001, "speedup": 0.1}
"""Relative differences up to which a measured figure agrees with a published one, where the suite does not say."""
TASK_TOLERANCE = 0.02


class Expectation(Frozen):
    """One published figure, and the cells that should reproduce it."""

    cells: tuple[str, ...] = Field(
        (), description="ids; they differ in their seed or in what the figure leaves open"
    )
    model: str
    method: str = Field(description="with its options and recovery, as a label")
    metric: str = Field(
        description="'perplexity', 'parameters', 'removed_share', 'speedup', 'tasks-mean' or a task"
    )
    corpus: str | None = Field(None, description="of a perplexity")
    protocol: str | None = Field(
        None, description="of a perplexity, where the cells measure several"
    )
    length: int | None = Field(
        None, description="tokens per window of a perplexity, where the cells measure several"
    )
    tasks: tuple[str, ...] = Field(
        (), description="that the mean is over; all of a cell's where empty"
    )
    value: float = Field(
        description="as published: scores of tasks in per cent, shares as fractions"
    )
    tolerance: float = Field(description="relative difference up to which a measured figure agrees")
    source: str

    def row(self) -> dict[str, Any]:
        """What names the figure, for messages and tables."""
        return self.model_dump(
            exclude={"cells", "value", "tolerance", "source"}, exclude_defaults=True
        )


def default_tolerance(metric: str) -> float:
    return TOLERANCES.get(metric, TASK_TOLERANCE)
