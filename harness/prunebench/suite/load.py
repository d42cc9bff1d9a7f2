"""A suite file, checked and resolved: names looked up, defaults filled in, lists fanned out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunebench.experiment.inputs import model_inputs
from prunebench.experiment.measures import LatencySpec, PerplexitySpec, TaskSpec
from prunebench.experiment.model import ModelRef
from prunebench.experiment.plugins import MethodRef, MetricRef, RuntimeRef
from prunebench.experiment.text import CalibrationSpec
from prunebench.suite import methods
from prunebench.suite.capacity import check_models, texts_read
from prunebench.suite.expectations import AvailableTargets, ExpectedFigure, resolve
from prunebench.suite.lookup import Lookup
from prunebench.suite.metrics import metric_refs
from prunebench.suite.models import model_refs
from prunebench.suite.overrides import override
from prunebench.suite.problems import Problems, fields_of
from prunebench.suite.runtimes import runtime_refs
from prunebench.suite.schema import (
    LatencyEntry,
    LimitsEntry,
    ProfileEntry,
    QualityEntry,
    SuiteFile,
    section_at,
)
from prunebench.suite.source import Source, read
from prunebench.suite.tasks import task_specs
from prunebench.suite.texts import Texts

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import KeyPath


@dataclass(frozen=True)
class Suite:
    """What a suite file asks for."""

    name: str
    title: str
    text: str
    """The file verbatim, followed by comments that say what `--set` changed."""
    models: tuple[ModelRef, ...]
    treatments: tuple[methods.Treatment, ...]
    """What is done to each model."""
    calibration: tuple[CalibrationSpec, ...]
    perplexity: tuple[PerplexitySpec, ...]
    latency: tuple[LatencySpec, ...]
    gate: float
    generation_gate: float | None
    seeds: tuple[int, ...]
    device: str
    threads: int | None
    keep_models: bool
    time_limit_s: float | None
    memory_limit_bytes: int | None = None
    expect: tuple[ExpectedFigure, ...] = ()
    """Published figures that its cells should reproduce."""
    tasks: tuple[TaskSpec, ...] = ()
    gpus: int | None = None
    metrics: tuple[MetricRef, ...] = ()
    runtimes: tuple[RuntimeRef, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is probably a mistake, one line each: 'FILE:LINE: KEY: message (fix)'."""

    @property
    def methods(self) -> tuple[MethodRef, ...]:
        """The methods of the treatments, in their order."""
        return tuple(treatment.method for treatment in self.treatments)


def load_suite(
    path_or_name: str | Path, *, registry: Registry, overrides: Sequence[str] = ()
) -> Suite:
    """Read a suite by its path, or a shipped one by its name, and apply `KEY=VALUE` overrides.

    Raises PrunebenchError as `check_suite` does.
    """
    return check_suite(override(read(path_or_name), overrides), registry)


def check_suite(source: Source, registry: Registry) -> Suite:
    """Resolve a suite.

    Raises one PrunebenchError with every problem, one line each: 'FILE:LINE: KEY: problem (fix)'.
    """
    problems = Problems(source)
    lookup = Lookup(registry, problems)
    file, wrong = _validated(source.data, problems)
    texts = Texts(file, lookup, incomplete=bool(wrong))
    suite = _resolved(file, source.text, lookup, texts)
    # Figures are matched to cells only if those are right: else each figure would be a problem too.
    if not wrong & {"models", "methods", "quality", "expect"} and not problems.errors:
        targets = AvailableTargets(
            suite.models,
            suite.treatments,
            suite.perplexity,
            [task.name for task in suite.tasks],
        )
        suite = replace(suite, expect=tuple(resolve(file.expect, targets, registry, problems)))
    if not problems.errors:
        asked = model_inputs(
            texts_read(suite.treatments, suite.calibration, registry),
            [one.recovery for one in suite.treatments if one.recovery is not None],
            suite.perplexity,
            suite.metrics,
            suite.latency,
        )
        removers = [
            treatment.method.name
            for treatment in suite.treatments
            if registry["method"][treatment.method.name].value.structure == {"layers"}
        ]
        check_models(suite.models, asked, suite.tasks, removers, problems)
    problems.stop()
    return replace(suite, warnings=tuple(problems.warnings))


def _resolved(file: SuiteFile, text: str, lookup: Lookup, texts: Texts) -> Suite:
    """The suite without its published figures; what is left out of it is among the problems."""
    quality = file.quality or QualityEntry()
    profile = file.profile or ProfileEntry(latency=[])
    limits = file.limits or LimitsEntry()
    latency = tuple(_latency(profile.latency))
    return Suite(
        name=file.name,
        title=file.title or file.name,
        text=text,
        models=tuple(model_refs(file.models, lookup)),
        treatments=tuple(methods.expand(file.methods, lookup, texts)),
        calibration=texts.calibration,
        perplexity=texts.perplexity,
        tasks=task_specs(quality.tasks, lookup.registry, lookup.problems),
        metrics=metric_refs(quality.metrics, lookup, texts, has_tasks=bool(quality.tasks)),
        latency=latency,
        runtimes=runtime_refs(profile.runtimes, latency, lookup),
        gate=quality.gate.tasks,
        generation_gate=quality.gate.generation,
        seeds=tuple(dict.fromkeys(file.seeds)),  # each once, in their order
        device=file.device,
        threads=file.threads,
        gpus=file.gpus,
        keep_models=file.keep_models,
        time_limit_s=limits.time_s,
        memory_limit_bytes=limits.memory,
    )


def _validated(data: dict[str, Any], problems: Problems) -> tuple[SuiteFile, set[str]]:
    """The file as sections, and the top-level keys that are wrong and therefore left out.

    The rest is resolved all the same, so that all problems come at once.
    """
    try:
        return SuiteFile.model_validate(data), set()
    except ValidationError as error:
        problems.add_validation((), data, error, _keys)
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
    sound = {key: value for key, value in data.items() if key not in wrong}
    # The schema demands these keys; errors about them are noted already.
    required = {"name": "unnamed", "models": ["unnamed"], "methods": [methods.DENSE]}
    file = SuiteFile.model_validate(required | sound)
    # Nothing is looked up in place of wrong models.
    return file.model_copy(update={"models": []}) if "models" in wrong else file, wrong


def _keys(path: KeyPath) -> dict[str, str | None] | None:
    section = section_at(path)
    return None if section is None else fields_of(section)


def _latency(entries: Sequence[LatencyEntry]) -> Iterator[LatencySpec]:
    keys = list(LatencyEntry.model_fields)
    for entry in entries:
        for shape in itertools.product(*(getattr(entry, key) for key in keys)):
            yield LatencySpec(**dict(zip(keys, shape, strict=True)))
