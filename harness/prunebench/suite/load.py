"""A suite file, checked and resolved: every name looked up, every default filled in, every list fanned out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.experiment.measures import LatencySpec, PerplexitySpec, TaskSpec
from prunebench.experiment.model import ModelRef, Placement
from prunebench.experiment.plugins import MethodRef, MetricRef
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench.measure.quality.protocols import DEFAULT, PROTOCOLS, ProtocolName
from prunebench.model.source import resolve
from prunebench.suite import methods
from prunebench.suite.expectations import AvailableTargets, ExpectedFigure
from prunebench.suite.expectations import resolve as resolve_expectations
from prunebench.suite.metrics import metric_refs
from prunebench.suite.overrides import override
from prunebench.suite.problems import Problems, absent, fields_of
from prunebench.suite.recoveries import Training
from prunebench.suite.schema import (
    CalibrationEntry,
    LatencyEntry,
    LimitsEntry,
    ModelEntry,
    PerplexityEntry,
    ProfileEntry,
    QualityEntry,
    SuiteFile,
    TextEntry,
    TrainingEntry,
    section_at,
)
from prunebench.suite.source import Source, read
from prunebench.suite.tasks import task_specs
from prunebench.text.corpus import SAMPLER_NAMES, Corpus, corpus_of, resolve_corpus

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import Path as KeyPath

AS_IS = "as-is"
"""The sampler of token files."""


@dataclass(frozen=True)
class Suite:
    """What a suite file asks for. ``text`` is the file verbatim, followed by comments for what `--set` changed."""

    name: str
    title: str
    text: str
    models: tuple[ModelRef, ...]
    treatments: tuple[methods.Treatment, ...]
    """Each method with its options, and what repairs the model after it."""
    calibration: tuple[CalibrationSpec, ...]
    perplexity: tuple[PerplexitySpec, ...]
    latency: tuple[LatencySpec, ...]
    gate: float
    seeds: tuple[int, ...]
    device: str
    threads: int | None
    keep_models: bool
    time_limit_s: float | None
    memory_limit_bytes: int | None = None
    expect: tuple[ExpectedFigure, ...] = ()
    """Published figures of its cells."""
    tasks: tuple[TaskSpec, ...] = ()
    gpus: int | None = None
    metrics: tuple[MetricRef, ...] = ()

    @property
    def methods(self) -> tuple[MethodRef, ...]:
        """The methods of the treatments, in their order."""
        return tuple(treatment.method for treatment in self.treatments)


def load_suite(
    path_or_name: str | Path, *, registry: Registry, overrides: Sequence[str] = ()
) -> Suite:
    """Read a suite by its path, or a shipped one by its name, with `KEY=VALUE` overrides.

    Raises PrunebenchError with every problem found, one line each: 'FILE:LINE: KEY: what is wrong (the fix)'.
    """
    return check_suite(override(read(path_or_name), overrides), registry)


def check_suite(source: Source, registry: Registry) -> Suite:
    """What a source asks for. Raises PrunebenchError with every problem found, one line each."""
    problems = Problems(source)
    file, wrong = _validated(source.data, problems)
    look = _Lookup(registry, problems)
    calibration = (
        ()
        if file.calibration is None
        else tuple(look.calibration(file.calibration, ("calibration",)))
    )
    calibrated = file.calibration is not None or bool(
        wrong
    )  # what is missing may be what is misspelt
    training = Training(
        calibration[0] if calibration else None, look.training, calibrated=calibrated
    )
    quality = file.quality or QualityEntry()
    profile = file.profile or ProfileEntry(latency=[])
    perplexity = tuple(look.perplexity(quality.perplexity))
    shared = perplexity[0] if perplexity else None
    measured = bool(quality.perplexity or wrong)
    suite = Suite(
        name=file.name,
        title=file.title or file.name,
        text=source.text,
        models=tuple(look.models([] if "models" in wrong else file.models)),
        treatments=tuple(
            methods.expand(
                file.methods,
                registry,
                problems,
                training,
                look.own_text(file),
                calibrated=calibrated,
            )
        ),
        calibration=calibration,
        perplexity=perplexity,
        tasks=task_specs(quality.tasks, registry, problems),
        metrics=metric_refs(
            quality.metrics, registry, problems, shared, look.text, measured=measured
        ),
        latency=tuple(_latency(profile.latency)),
        gate=quality.gate,
        seeds=tuple(dict.fromkeys(file.seeds)),
        device=file.device,
        threads=file.threads,
        gpus=file.gpus,
        keep_models=file.keep_models,
        time_limit_s=(file.limits or LimitsEntry()).time_s,
        memory_limit_bytes=(file.limits or LimitsEntry()).memory,
    )
    if not wrong & {"models", "methods", "quality", "expect"} and not problems.errors:
        offered = AvailableTargets(suite.models, suite.treatments, suite.perplexity, _tasks(suite))
        suite = replace(
            suite, expect=tuple(resolve_expectations(file.expect, offered, registry, problems))
        )
    problems.stop()
    return suite


def _tasks(suite: Suite) -> list[str]:
    """The names of the tasks that the cells are scored on."""
    return [task.name for task in getattr(suite, "tasks", ())]


def _validated(data: dict[str, Any], problems: Problems) -> tuple[SuiteFile, set[str]]:
    """The file as sections, and the top-level keys that are wrong: these are replaced by stand-ins.

    So the names in the sound part of a suite are looked up all the same, and all errors come in one go.
    """
    try:
        return SuiteFile.model_validate(data), set()
    except ValidationError as error:
        problems.add_validation((), data, error, _keys)
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
    stand_ins = {"name": "unnamed", "models": ["unnamed"], "methods": [methods.DENSE]}
    sound = {key: value for key, value in data.items() if key not in wrong}
    return SuiteFile.model_validate(stand_ins | sound), wrong


def _keys(path: KeyPath) -> dict[str, str | None] | None:
    section = section_at(path)
    return None if section is None else fields_of(section)


def _latency(entries: list[LatencyEntry]) -> Iterator[LatencySpec]:
    for entry in entries:
        keys = list(LatencyEntry.model_fields)
        for shape in itertools.product(*(getattr(entry, key) for key in keys)):
            yield LatencySpec(**dict(zip(keys, shape, strict=True)))


class _Lookup:
    """Resolves what a suite names; what cannot be resolved goes to ``problems`` and is left out."""

    def __init__(self, registry: Registry, problems: Problems) -> None:
        self.registry = registry
        self.problems = problems
        self.assets = registry.registered("model")
        self.registered: dict[str, Corpus] = registry.registered("corpus")

    def hint(self, value: Any, error: PrunebenchError) -> str | None:
        """The error's own hint, or which plugin may be the reason that a name is unknown."""
        unknown = isinstance(value, str) and error.message.startswith("unknown ")
        return absent(value, error.hint, self.registry) if unknown else error.hint

    def models(self, entries: list[ModelEntry]) -> Iterator[ModelRef]:
        taken: dict[str, int] = {}
        for index, entry in enumerate(entries):
            path = ("models", index)
            try:
                ref = resolve(
                    entry.model,
                    base=self.problems.source.base(path),
                    assets=self.assets,
                    revision=entry.revision,
                    dtype=entry.dtype[0],
                    trust_remote_code=entry.trust_remote_code,
                    placement=_placement(entry),
                    name=entry.name,
                )
            except PrunebenchError as error:
                self.problems.add(path, error.message, self.hint(entry.model, error))
                continue
            if ref.name in taken:
                self.problems.add(
                    path,
                    f"models[{taken[ref.name]}] is called '{ref.name}' too",
                    f"give one of them another name: {{model: {entry.model}, name: ...}}",
                )
            taken[ref.name] = index
            several = len(set(entry.dtype)) > 1
            for dtype in dict.fromkeys(entry.dtype):
                name = f"{ref.name} {dtype}" if several else ref.name
                yield ref.model_copy(update={"dtype": dtype, "name": name})

    def own_text(self, file: SuiteFile) -> Callable[[Any, KeyPath], tuple[CalibrationSpec, ...]]:
        """Looks up a method's own `calibration:`; what it leaves out is as in the suite's."""
        shared = {} if file.calibration is None else file.calibration.model_dump(exclude_unset=True)
        known = fields_of(CalibrationEntry)

        def look_up(value: Any, path: KeyPath) -> tuple[CalibrationSpec, ...]:
            own = {
                key: shared[key] for key in shared if key not in {"split", "sampler"}
            }  # these belong to a corpus
            if isinstance(value, dict):
                own = {**(own if "corpus" in value else shared), **value}
            try:
                entry = CalibrationEntry.model_validate(own if isinstance(value, dict) else value)
            except ValidationError as error:
                self.problems.add_validation(path, value, error, lambda at: None if at else known)
                return ()
            return tuple(self.calibration(entry, path))

        return look_up

    def training(self, entry: TrainingEntry, path: KeyPath) -> CalibrationSpec | None:
        """The windows of a recovery's `data:`; None where something is wrong with it."""
        given = entry.model_dump(exclude_unset=True) | {
            "windows": entry.windows,
            "length": entry.length,
        }
        return next(self.calibration(CalibrationEntry.model_validate(given), path), None)

    def text(self, entry: TextEntry, path: KeyPath) -> PerplexitySpec | None:
        """The windows of a metric's `data:`; None where something is wrong with it."""
        given = PerplexityEntry.model_validate(entry.model_dump(exclude_none=True))
        return next(
            (
                spec
                for ref, corpus in self.corpora(given.corpus, path)
                for spec in self.protocol(DEFAULT, given, ref, corpus, path)
            ),
            None,
        )

    def calibration(self, entry: CalibrationEntry, path: KeyPath) -> Iterator[CalibrationSpec]:
        for ref, corpus in self.corpora(entry.corpus, path):
            splits = self.splits(entry.split or [corpus.calibration_split], corpus, path)
            samplers = self.samplers(entry.sampler or [corpus.sampler], corpus, path)
            for split, sampler, windows, length in itertools.product(
                splits, samplers, entry.windows, entry.length
            ):
                yield CalibrationSpec(
                    corpus=ref, split=split, sampler=sampler, windows=windows, length=length
                )

    def perplexity(self, entries: list[PerplexityEntry]) -> Iterator[PerplexitySpec]:
        for index, entry in enumerate(entries):
            path = ("quality", "perplexity", index)
            for ref, corpus in self.corpora(entry.corpus, path):
                for name in dict.fromkeys(entry.protocol):
                    yield from self.protocol(name, entry, ref, corpus, path)

    def protocol(
        self,
        name: ProtocolName,
        entry: PerplexityEntry,
        ref: CorpusRef,
        corpus: Corpus,
        path: KeyPath,
    ) -> Iterator[PerplexitySpec]:
        """What one protocol measures on one corpus: its own choices where the entry makes none."""
        known = PROTOCOLS[name]
        usual = (
            known.splits.get(ref.name, corpus.evaluation_split)
            if ref.path is None
            else corpus.evaluation_split
        )
        splits = self.splits(entry.split or [usual], corpus, path)
        for split, length in itertools.product(
            splits, [known.length] if entry.length is None else entry.length
        ):
            some = (
                [known.windows(length) or corpus.evaluation_windows]
                if entry.windows is None
                else entry.windows
            )
            for windows in some:
                yield PerplexitySpec(
                    corpus=ref,
                    split=split,
                    length=length,
                    windows=windows,
                    protocol=name,
                    fewer=entry.windows is None,
                    tail=known.tail if entry.tail is None else entry.tail,
                    joiner=known.joiners.get(ref.name) if ref.path is None else None,
                )

    def corpora(
        self, named: list[str | dict[str, Any]], path: KeyPath
    ) -> Iterator[tuple[CorpusRef, Corpus]]:
        for index, value in enumerate(named):
            here = (*path, "corpus", index)
            try:
                ref = resolve_corpus(
                    value, base=self.problems.source.base(here), corpora=self.registered
                )
            except PrunebenchError as error:
                self.problems.add(here, error.message, self.hint(value, error))
            else:
                yield ref, corpus_of(ref, self.registered)

    def splits(self, wanted: list[str], corpus: Corpus, path: KeyPath) -> list[str]:
        for place, split in enumerate(wanted):
            if split not in corpus.splits:
                hint = did_you_mean(split, corpus.splits)
                self.problems.add(
                    (*path, "split", place), f"'{corpus.name}' has no split '{split}'", hint
                )
        return wanted

    def samplers(self, wanted: list[str], corpus: Corpus, path: KeyPath) -> list[str]:
        for place, sampler in enumerate(wanted):
            here = (*path, "sampler", place)
            if sampler not in SAMPLER_NAMES:
                self.problems.add(
                    here, f"unknown sampler '{sampler}'", did_you_mean(sampler, SAMPLER_NAMES)
                )
            elif (sampler == AS_IS) != (corpus.sampler == AS_IS):
                what = "holds windows already drawn" if corpus.sampler == AS_IS else "holds text"
                self.problems.add(
                    here,
                    f"the sampler '{sampler}' is not for '{corpus.name}', which {what}",
                    f"leave `sampler` out, then '{corpus.sampler}' is used",
                )
        return wanted


def _placement(entry: ModelEntry) -> Placement | None:
    """Raises PrunebenchError where memory is shared out and nothing is to be spread."""
    if entry.device_map is None:
        if entry.max_memory is not None:
            raise PrunebenchError(
                "`max_memory` is for models that are spread", hint="add `device_map: auto`"
            )
        return None
    sizes = sorted((str(place), size) for place, size in (entry.max_memory or {}).items())
    return Placement(device_map=entry.device_map, max_memory=tuple(sizes))
