"""What a cell puts into its model at once: every window that it calibrates, trains or measures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.measures import LatencySpec, PerplexitySpec
    from prunebench.experiment.plugins import MetricRef, RecoveryRef
    from prunebench.experiment.text import CalibrationSpec


class ModelInput(NamedTuple):
    """One kind of input; ``key`` is the suite's section that asks for it."""

    what: str
    tokens: int
    key: tuple[str, ...]


def model_inputs(
    calibration: Iterable[CalibrationSpec] = (),
    recoveries: Iterable[RecoveryRef] = (),
    perplexity: Iterable[PerplexitySpec] = (),
    metrics: Iterable[MetricRef] = (),
    latency: Iterable[LatencySpec] = (),
) -> Iterator[ModelInput]:
    """The inputs whose length the suite decides.

    A perplexity over windows as long as the model accepts is not one of them, nor are tasks, whose
    prompts lm-eval cuts to the model's length.
    """
    for text in calibration:
        yield ModelInput("a calibration window", text.length, ("calibration",))
    for recovery in recoveries:
        what = f"a training window of '{recovery.name}'"
        yield ModelInput(what, recovery.data.length, ("methods",))
    for spec in perplexity:
        if spec.length is not None:
            what = f"perplexity on {spec.corpus.name}"
            yield ModelInput(what, spec.length, ("quality", "perplexity"))
    for metric in metrics:
        if metric.data is not None and metric.data.length is not None:
            what = f"the metric '{metric.label}'"
            yield ModelInput(what, metric.data.length, ("quality", "metrics"))
    for shape in latency:
        tokens = shape.prompt + shape.new_tokens
        yield ModelInput("a prompt with its new tokens", tokens, ("profile", "latency"))


def inputs_of(cell: Cell) -> Iterator[ModelInput]:
    """The inputs of one cell."""
    return model_inputs(
        filter(None, [cell.calibration]),
        filter(None, [cell.recovery]),
        cell.perplexity,
        cell.metrics,
        cell.latency,
    )
