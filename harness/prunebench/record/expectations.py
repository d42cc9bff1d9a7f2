"""Published figures that a suite compares its cells with.

They are stored beside the plan and are never part of a cell's id: adding one reruns nothing.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prunebench.schema import Frozen

PERPLEXITY = "perplexity"
TASKS_MEAN = "tasks-mean"
MODEL_METRICS = ("parameters", "removed_share", "speedup")
REMOVED_LAYERS = "removed_layers"
"""How many of the `layers` of a figure were removed."""

# The default tolerance: the largest relative difference at which a measured figure still agrees
# with the published one.
TOLERANCES = {
    PERPLEXITY: 0.02,
    "parameters": 0.001,
    "removed_share": 0.001,
    "speedup": 0.1,
    REMOVED_LAYERS: 0.0,
}
TASK_TOLERANCE = 0.02


class Expectation(Frozen):
    """One published figure, and the cells that should reproduce it."""

    cells: tuple[str, ...] = Field(
        (),
        description="their ids; the cells differ only in the seed or in what the figure does not "
        "specify",
    )
    model: str
    method: str = Field(description="its label: the name with options and recovery")
    metric: str = Field(
        description="'perplexity', 'parameters', 'removed_share', 'speedup', 'removed_layers',"
        " 'tasks-mean' or a task"
    )
    corpus: str | None = Field(None, description="of a perplexity")
    protocol: str | None = Field(
        None, description="of a perplexity, if the cells measure more than one"
    )
    length: int | None = Field(
        None, description="tokens per window of a perplexity, if the cells measure more than one"
    )
    tasks: tuple[str, ...] = Field(
        (), description="the tasks that the mean is over; empty for all tasks of the cell"
    )
    layers: tuple[int, ...] = Field(
        (), description="the decoder layers that the publication removes, for 'removed_layers'"
    )
    value: float = Field(
        description="as published: scores of tasks in per cent, shares as fractions"
    )
    tolerance: float = Field(
        description="largest relative difference at which a measured figure agrees"
    )
    source: str

    def row(self) -> dict[str, Any]:
        """The fields that identify the figure, for messages and tables."""
        return self.model_dump(
            exclude={"cells", "value", "tolerance", "source"}, exclude_defaults=True
        )


def default_tolerance(metric: str) -> float:
    return TOLERANCES.get(metric, TASK_TOLERANCE)
