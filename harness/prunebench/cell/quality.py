"""The metrics of a cell: each one measured by itself and guarded, so that a fault costs nothing but its own figures."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from prunebench.cell.lookup import plugin_of
from prunebench.cell.partial_results import fingerprint
from prunebench.cell.pipeline import seed_all, vocabulary
from prunebench.cell.profile import too_large
from prunebench.errors import PrunebenchError, first_line
from prunebench.isolation.flags import Flags
from prunebench.isolation.model_guard import ModelGuard
from prunebench.isolation.process_guard import guarded
from prunebench.model.placement import input_device
from prunebench.model.positions import check_positions
from prunebench.plugin.api.metric import Figure, Metric, MetricContext
from prunebench.record.quality import MetricFigure, MetricResult
from prunebench.text.windows import Windows, evaluation_windows, with_length

if TYPE_CHECKING:
    from prunebench.cell.partial_results import Stages
    from prunebench.cell.pipeline import PrunedCell, Workbench
    from prunebench.experiment.plugins import MetricRef

LONGEST = 500
"""Characters of a reason."""


class _Dense:
    """The dense model, loaded when it is first asked for."""

    def __init__(self, bench: Workbench, made: PrunedCell) -> None:
        self._bench = bench
        self._made = made
        self.model: Any = None

    def load(self) -> Any:
        """Raises PrunebenchError where it does not fit beside the pruned model."""
        if self.model is None:
            if reason := too_large(self._made.audit, self._made.loaded.model):
                raise PrunebenchError(
                    reason.partition(":")[0], hint="run it where both fit, or leave this metric out"
                )
            self.model = self._bench.load().model
        return self.model


class _Watch:
    """Whether one metric only looks at the models that it is given."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._seen: list[tuple[str, Any, str, ModelGuard]] = []

    def begin(self, name: str, model: Any) -> Any:
        if all(model is not known for _, known, _, _ in self._seen):
            self._seen.append((name, model, fingerprint(model), ModelGuard(model, self._who)))
        return model

    def end(self, flags: Flags) -> None:
        """Take off what was left on the models. Raises PrunebenchError where a weight changed."""
        for name, model, weights, guard in self._seen:
            guard.restore(model, flags)
            if fingerprint(model) != weights:
                raise PrunebenchError(
                    f"{self._who} changed the {name}",
                    hint="a metric only looks: let it work on copies of the modules that it changes",
                )


def measure_metrics(
    bench: Workbench,
    made: PrunedCell,
    stages: Stages,
    progress: Callable[[int, int], Callable[[int, int], None]],
) -> list[MetricResult]:
    """Every metric of the cell in its order; ``progress(number, count)`` gives each its part of the bar.

    Raises PrunebenchError where a metric changed a model that it should only look at: what is measured afterwards would
    be of another model. Any other fault becomes the reason why the metric's figures are not available.
    """
    dense = _Dense(bench, made)
    results: list[MetricResult] = []
    refs = bench.cell.metrics
    for number, ref in enumerate(refs):
        stage = f"metric {ref.label}, {number + 1}"
        if known := stages.get(stage, MetricResult):
            results += known
            continue
        result = _measured(ref, bench, made, dense, progress(number, len(refs)))
        if all(figure.reason is None for figure in result.figures):
            stages.put(stage, [result])
        results.append(result)
    if dense.model is not None:  # what generation takes in memory is measured next
        dense.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _measured(
    ref: MetricRef,
    bench: Workbench,
    made: PrunedCell,
    dense: _Dense,
    progress: Callable[[int, int], None],
) -> MetricResult:
    model, who = made.loaded.model, f"the metric '{ref.label}'"
    log = logging.getLogger(f"prunebench.{ref.name}")
    watch = _Watch(who)
    watch.begin("model", model)
    seed_all(bench.cell.seed)
    kind: type[Metric] | None = None
    text: Windows | None = None
    given: Any = None
    reason = None
    begun = time.perf_counter()
    try:
        with torch.no_grad(), guarded(who, bench.flags):
            metric: Metric = plugin_of(ref, "metric", bench.registry)
            kind = type(metric)
            text = _text(ref, bench, made)
            context = MetricContext(
                tokens=None if text is None else text.tokens.to(input_device(model)),
                seed=bench.cell.seed,
                load_dense=lambda: watch.begin("dense model", dense.load()),
                progress=progress,
                log=log,
            )
            given = metric.measure(model, made.loaded.tokenizer, context)
    except (Exception, SystemExit) as error:
        reason = _told(error)
        log.warning("%s is not available", who, exc_info=error)
    seconds = time.perf_counter() - begun
    watch.end(bench.flags)
    figures = _figures(ref.name, kind, given, reason)
    bench.flags.found += [
        f"{who} is not available{f' ({figure.name})' if figure.name != ref.name else ''}: {figure.reason}"
        for figure in (figures[:1] if reason else figures)
        if figure.reason
    ]
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
    )


def _text(ref: MetricRef, bench: Workbench, made: PrunedCell) -> Windows | None:
    if ref.data is None:
        return None
    model = made.loaded.model
    found = evaluation_windows(
        with_length(ref.data, model), made.loaded.tokenizer, vocabulary(model), bench.corpora
    )
    check_positions(model, found.tokens.shape[1], f"the metric '{ref.label}'")
    return found


def _figures(
    name: str, kind: type[Metric] | None, given: Any, reason: str | None
) -> list[MetricFigure]:
    """What was given as figures, each with a value or with the reason why it has none."""
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
    if given is None:
        return None, "the metric gave no such figure"
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        return None, f"the metric gave a {type(given).__name__}, which is no number"
    return (value, None) if math.isfinite(value) else (None, f"the metric gave {value}")


def _told(error: BaseException) -> str:
    text = (
        error.message
        if isinstance(error, PrunebenchError)
        else f"{type(error).__name__}: {first_line(error)}"
    )
    hint = f" ({error.hint})" if isinstance(error, PrunebenchError) and error.hint else ""
    return f"{text}{hint}"[:LONGEST]
