"""Measure the quality of a pruned model: perplexity, tasks, and the metrics of plugins.

Each entry of the suite is one `Measure`. Its result is kept as soon as it is there, so that an
interrupted cell repeats only what was not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.cell.dense_identity import dense_identity
from prunebench.cell.dense_model import DenseModel, is_dense
from prunebench.cell.plugin_metrics import is_complete, measure_metric
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.measure.quality.text_passes import TextPasses
from prunebench.model.placement import dispatch
from prunebench.record.quality import MetricResult, Perplexity, Quality, TaskResult
from prunebench.schema import Part
from prunebench.text.windows import with_length

if TYPE_CHECKING:
    from prunebench.cell.partial_results import PartialResults
    from prunebench.cell.pipeline import PrunedCell
    from prunebench.cell.setup import CellSetup
    from prunebench.experiment.measures import PerplexitySpec, TaskSpec
    from prunebench.experiment.plugins import MetricRef
    from prunebench.model.load import LoadedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measure:
    """One entry of the suite: the name that its results are kept under, and how to get them."""

    name: str
    kind: type[Part]
    run: Callable[[Progress], list[Any]]


def measure_quality(setup: CellSetup, pruned: PrunedCell, kept: PartialResults) -> Quality:
    """All quality figures of the cell; results of an interrupted run are taken from ``kept``.

    Raises PrunebenchError if a metric changed a model: what is measured afterwards would be of
    another model.
    """
    found: dict[str, list[Any]] = {"perplexity": []}
    passes = TextPasses(dense_identity(setup), own_is_dense=is_dense(setup.cell))
    with closing(DenseModel(setup, pruned, passes)) as dense:
        for phase, measures in _measures(setup, pruned, dense, found):
            with setup.phases.phase(phase):
                if phase == "perplexity":
                    _finish_model(setup, pruned.loaded.model, kept)
                found[phase] = _run_all(measures, kept, setup.phases.progress)
    return Quality(**found)


def _measures(
    setup: CellSetup, pruned: PrunedCell, dense: DenseModel, found: dict[str, list[Any]]
) -> list[tuple[str, list[Measure]]]:
    """What to measure in each phase, in order; a phase is also the name of a field of `Quality`.

    ``found`` has the results of the phases before.
    """
    cell, loaded = setup.cell, pruned.loaded

    def text_perplexity(spec: PerplexitySpec) -> Callable[[Progress], list[Perplexity]]:
        return lambda progress: [_perplexity(setup, loaded, spec, dense.passes, progress)]

    def task(spec: TaskSpec) -> Callable[[Progress], list[TaskResult]]:
        return lambda progress: evaluate_tasks(
            loaded.model, loaded.tokenizer, [spec], data=setup.task_data, progress=progress
        )

    def metric(ref: MetricRef) -> Callable[[Progress], list[MetricResult]]:
        return lambda progress: [
            measure_metric(ref, setup, pruned, dense, progress, found.get("tasks", []))
        ]

    measures = [
        (
            "perplexity",
            [
                Measure(f"perplexity {number}", Perplexity, text_perplexity(spec))
                for number, spec in enumerate(cell.perplexity, 1)
            ],
        ),
        (
            "tasks",
            [
                Measure(f"tasks {spec.name}, {number}", TaskResult, task(spec))
                for number, spec in enumerate(cell.tasks, 1)
            ],
        ),
        (
            "metrics",
            [
                Measure(f"metric {ref.label}, {number}", MetricResult, metric(ref))
                for number, ref in enumerate(cell.metrics, 1)
            ],
        ),
    ]
    # The first phase always runs: it also finishes the model.
    return [entry for entry in measures if entry[1] or entry[0] == "perplexity"]


def _finish_model(setup: CellSetup, model: Any, kept: PartialResults) -> None:
    """Note what the weights are, then move them to where the cell's `device_map` wants them."""
    # In this order: weights that are offloaded to disk have no fingerprint of their own.
    kept.begin(model)
    if setup.cell.model.placement is not None:
        dispatch(model, setup.cell.model.placement, setup.device)


def _run_all(measures: list[Measure], kept: PartialResults, progress: Progress) -> list[Any]:
    results: list[Any] = []
    for number, measure in enumerate(measures):
        found: list[Any] | None = kept.get(measure.name, measure.kind)
        if found is None:
            found = measure.run(_part(progress, number, len(measures)))
            if is_complete(found):
                kept.put(measure.name, found)
        results += found
    return results


def _part(progress: Progress, number: int, count: int) -> Progress:
    """Progress within the part ``number`` of ``count`` equal parts, as progress of the whole."""
    return lambda done, total: progress(number * total + done, count * total)


def _perplexity(
    setup: CellSetup,
    loaded: LoadedModel,
    spec: PerplexitySpec,
    passes: TextPasses,
    progress: Progress,
) -> Perplexity:
    spec = with_length(spec, loaded.model)
    windows = setup.evaluation_windows(spec, loaded)
    shared = any(_reads(metric, spec, setup, loaded) for metric in setup.cell.metrics)
    keep = passes.keep(loaded.model, windows.tokens) if shared else None
    return perplexity(loaded.model, windows, spec, progress=progress, keep=keep)


def _reads(metric: MetricRef, spec: PerplexitySpec, setup: CellSetup, loaded: LoadedModel) -> bool:
    """Whether the metric looks at logits of the windows of ``spec``."""
    found = setup.registry["metric"].get(metric.name)
    if found is None or metric.data is None or not found.value.needs_logits:
        return False
    # A shorter last window is the only thing that perplexity counts and metrics do not.
    text = with_length(metric.data, loaded.model)
    return text == spec.model_copy(update={"tail": text.tail})
