"""Measure one metric of a plugin, guarded so that a fault costs nothing but its own figures."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.partial_results import fingerprint
from prunebench.cell.setup import seed_all
from prunebench.errors import PrunebenchError, first_line, printable
from prunebench.isolation.flags import Flags
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.measure.quality.greedy import end_tokens
from prunebench.measure.quality.tasks import evaluate_tasks
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions
from prunebench.plugin.api.metric import LONGEST_METRIC_NOTES, Figure, Metric, MetricContext
from prunebench.plugin.plugin_code import plugin_code
from prunebench.record.quality import MetricFigure, MetricResult

if TYPE_CHECKING:
    from prunebench.cell.dense_model import DenseModel
    from prunebench.cell.pipeline import PrunedCell
    from prunebench.cell.setup import CellSetup
    from prunebench.experiment.measures import TaskSpec
    from prunebench.experiment.plugins import MetricRef
    from prunebench.measure.quality.choice_scores import ChoiceScores
    from prunebench.record.quality import TaskResult
    from prunebench.text.windows import Windows

# Characters of a reason; an exception's text may be pages long.
LONGEST_REASON = 500


class _ReadOnly:
    """Checks that one metric changes nothing on the models that it gets."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._seen: list[tuple[str, Any, str, ModelGuard]] = []

    def lend(self, name: str, model: Any) -> Any:
        if all(model is not known for _, known, _, _ in self._seen):
            guard = ModelGuard(model, self._who)
            self._seen.append((name, model, fingerprint(model), guard))
        return model

    def check(self, flags: Flags) -> None:
        """Remove what was left on the models. Raises PrunebenchError if a weight changed."""
        for name, model, weights, guard in self._seen:
            guard.restore(model, flags)
            if fingerprint(model) != weights:
                raise PrunebenchError(
                    f"{self._who} changed the {name}",
                    hint="a metric must not change a model: "
                    "let it work on copies of the modules that it changes",
                )


def measure_metric(
    ref: MetricRef,
    setup: CellSetup,
    pruned: PrunedCell,
    dense: DenseModel,
    progress: Callable[[int, int], None],
    tasks: Sequence[TaskResult] = (),
) -> MetricResult:
    """Measure one metric; a fault becomes the reason why its figures are not available.

    ``tasks`` are the results of the cell's tasks. Raises PrunebenchError only if the metric changed
    a model.
    """
    model, who = pruned.loaded.model, f"the metric '{ref.label}'"
    log = logging.getLogger(f"prunebench.{ref.name}")
    lent = _ReadOnly(who)
    lent.lend("model", model)
    # Seeded for each metric, so that a figure does not depend on the metrics before it.
    seed_all(setup.cell.seed)
    kind: type[Metric] | None = None
    text: Windows | None = None
    given: Any = None
    context: MetricContext | None = None
    reason = None
    begun = time.perf_counter()
    try:
        with torch.no_grad(), guarded(who, setup.flags):
            metric: Metric = setup.plugin(ref, "metric")
            kind = type(metric)
            text = _text(ref, setup, pruned)
            context = MetricContext(
                tokens=None if text is None else text.tokens.to(input_device(model)),
                seed=setup.cell.seed,
                load_dense=lambda: lent.lend("dense model", dense.load()),
                progress=progress,
                log=log,
                end_tokens=end_tokens(model, pruned.loaded.tokenizer),
                tasks=tasks,
                score_choices=_score_choices(setup, pruned, progress) if tasks else None,
                passes=dense.passes,
                questions=_questions(setup.cell.tasks),
            )
            with plugin_code(metric):
                given = metric.measure(model, pruned.loaded.tokenizer, context)
    except (Exception, SystemExit) as error:
        reason = _reason(error)
        log.warning("%s is not available", who, exc_info=error)
    seconds = time.perf_counter() - begun
    lent.check(setup.flags)
    figures = _figures(ref.name, kind, given, reason)
    # One flag for a metric that failed, or one for each figure that is missing.
    for figure in figures[:1] if reason else figures:
        if figure.reason:
            part = f" ({figure.name})" if figure.name != ref.name else ""
            setup.flags.add(who, f"is not available{part}: {figure.reason}")
    notes = setup.plain_notes(context.notes, who, LONGEST_METRIC_NOTES) if context else {}
    result = _result(ref, text, figures, seconds, notes)
    result.generative = kind is not None and kind.generative
    return result


def _score_choices(
    setup: CellSetup, pruned: PrunedCell, progress: Callable[[int, int], None]
) -> Callable[[Any], dict[str, list[ChoiceScores]]]:
    def score(model: Any) -> dict[str, list[ChoiceScores]]:
        found: dict[str, list[ChoiceScores]] = {}
        evaluate_tasks(
            model,
            pruned.loaded.tokenizer,
            setup.cell.tasks,
            data=setup.task_data,
            progress=progress,
            choices=found,
        )
        return found

    return score


def _questions(specs: Sequence[TaskSpec]) -> str | None:
    """A text that identifies the questions; None if nothing pins the rows of a task."""
    if any(spec.data.path is None and spec.data.revision is None for spec in specs):
        return None
    return json.dumps([spec.identity() for spec in specs], sort_keys=True)


def is_complete(results: Sequence[Any]) -> bool:
    """Whether no figure is missing; a metric that failed is tried again by the next run."""
    return all(
        figure.reason is None
        for result in results
        if isinstance(result, MetricResult)
        for figure in result.figures
    )


def _result(
    ref: MetricRef,
    text: Windows | None,
    figures: list[MetricFigure],
    seconds: float,
    notes: dict[str, Any],
) -> MetricResult:
    return MetricResult(
        metric=ref.name,
        label=ref.label,
        distribution=ref.distribution,
        version=ref.version,
        text=None if ref.data is None else f"{ref.data.corpus.name} {ref.data.split}",
        windows=None if text is None else text.tokens.shape[0],
        window=None if text is None else text.tokens.shape[1],
        tokens_sha256=None if text is None else text.sha256,
        figures=figures,
        seconds=seconds,
        notes=notes,
    )


def _text(ref: MetricRef, setup: CellSetup, pruned: PrunedCell) -> Windows | None:
    if ref.data is None:
        return None
    model = pruned.loaded.model
    found = setup.evaluation_windows(ref.data, pruned.loaded)
    # A copy: a metric that changes its tokens changes no other's.
    found = replace(found, tokens=found.tokens.clone())
    check_positions(model, found.tokens.shape[1], f"the metric '{ref.label}'")
    return found


def _figures(
    name: str, kind: type[Metric] | None, given: Any, reason: str | None
) -> list[MetricFigure]:
    """The figures that a metric gave or declares, each with a value or with the reason for none."""
    own = (
        Figure("", higher_is_better=True)
        if kind is None
        else Figure(kind.unit, kind.higher_is_better)
    )
    declared = {} if kind is None else dict(kind.figures)
    if reason is not None:
        return [
            _figure(one, declared.get(one, own), None, reason)
            for one in dict.fromkeys((name, *declared))
        ]
    values = (
        {str(key): value for key, value in given.items()}
        if isinstance(given, Mapping)
        else {name: given}
    )
    # The metric's own figure comes first. A metric that gives and declares nothing still gets it,
    # so that its absence is visible.
    first = (name,) if name in values or not {**declared, **values} else ()
    names = dict.fromkeys((*first, *declared, *values))
    return [_figure(one, declared.get(one, own), *_value(values.get(one))) for one in names]


def _figure(name: str, about: Figure, value: float | None, reason: str | None) -> MetricFigure:
    return MetricFigure(
        name=name,
        unit=about.unit,
        higher_is_better=about.higher_is_better,
        value=value,
        reason=reason,
    )


def _value(given: Any) -> tuple[float | None, str | None]:
    """A number and no reason, or the reason why there is none."""
    if given is None:
        return None, "the metric gave no such figure"
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        return None, f"the metric gave a {type(given).__name__}, which is no number"
    return (value, None) if math.isfinite(value) else (None, f"the metric gave {value}")


def _reason(error: BaseException) -> str:
    text = (
        error.message
        if isinstance(error, PrunebenchError)
        else f"{type(error).__name__}: {first_line(error)}"
    )
    hint = f" ({error.hint})" if isinstance(error, PrunebenchError) and error.hint else ""
    return printable(f"{text}{hint}")[:LONGEST_REASON]
