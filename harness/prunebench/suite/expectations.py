"""`expect:` of a suite: published figures, each matched to the cells that should reproduce it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from prunebench.errors import did_you_mean
from prunebench.record.expectations import (
    MODEL_METRICS,
    PERPLEXITY,
    REMOVED_LAYERS,
    TASKS_MEAN,
    Expectation,
    default_tolerance,
)
from prunebench.suite.options import combinations
from prunebench.suite.problems import Problems, hint_for_unknown
from prunebench.suite.source import SET

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.measures import PerplexitySpec
    from prunebench.experiment.model import ModelRef
    from prunebench.plugin.registry import Registry
    from prunebench.suite.methods import Treatment
    from prunebench.suite.schema import ExpectEntry
    from prunebench.suite.yaml import KeyPath


T = TypeVar("T")


@dataclass(frozen=True)
class ExpectedFigure:
    """A published figure, and the model and the treatment that it is of."""

    figure: Expectation
    model: str
    treatment: Treatment

    def among(self, cells: Iterable[Cell]) -> Expectation:
        """The figure with the ids of its cells."""
        ids = tuple(cell.id for cell in cells if self._fits(cell))
        return self.figure.model_copy(update={"cells": ids})

    def _fits(self, cell: Cell) -> bool:
        return cell.model.name == self.model and _identity(cell) == _identity(self.treatment)


@dataclass(frozen=True)
class AvailableTargets:
    """The models, treatments and measures of a suite's cells: what a figure can be of."""

    models: Sequence[ModelRef]
    treatments: Sequence[Treatment]
    perplexity: Sequence[PerplexitySpec]
    tasks: Sequence[str]


def resolve(
    entries: Sequence[ExpectEntry],
    targets: AvailableTargets,
    registry: Registry,
    problems: Problems,
) -> Iterator[ExpectedFigure]:
    """Match every published figure; a figure that matches no cell goes to ``problems``.

    If the command line changed the suite, such figures are left out silently: they belong to the
    suite as it is published.
    """
    # Problems of figures are collected apart, so that they can be dropped.
    changed = any(location.startswith(SET) for location in problems.source.locations.values())
    found = Problems(problems.source)
    for index, entry in enumerate(entries):
        expected = _Matcher(entry, ("expect", index), targets, registry, found).figure()
        if expected is not None:
            yield expected
    if not changed:
        problems.errors += found.errors


def _identity(one: Cell | Treatment) -> dict[str, Any]:
    """What is done to the model, however the suite writes it."""
    return {
        "method": one.method.model_dump(exclude={"given"}),
        "allocation": one.allocation and one.allocation.model_dump(exclude={"given"}),
        "recovery": one.recovery and one.recovery.model_dump(exclude={"given"}),
    }


@dataclass(frozen=True)
class _Matcher:
    """Finds what one figure is of."""

    entry: ExpectEntry
    path: KeyPath
    targets: AvailableTargets
    registry: Registry
    problems: Problems

    def figure(self) -> ExpectedFigure | None:
        # All three are tried, so that all problems of the entry come at once.
        model = self.tried(self.model)
        treatment = self.tried(self.treatment)
        measure = self.tried(self.measure)
        if model is None or treatment is None or measure is None:
            return None
        entry = self.entry
        tolerance = entry.tolerance
        figure = Expectation(
            model=model,
            method=treatment.label,
            metric=entry.metric,
            tasks=tuple(entry.tasks or ()),
            value=entry.value,
            tolerance=default_tolerance(entry.metric) if tolerance is None else tolerance,
            source=entry.source,
            **measure,
        )
        return ExpectedFigure(figure, model, treatment)

    def tried(self, find: Callable[[], T | None]) -> T | None:
        try:
            return find()
        except _NoMatchError as error:
            self.problems.add((*self.path, error.key), error.message, error.hint)
            return None

    def model(self) -> str:
        for ref in self.targets.models:
            if self.entry.model in {ref.name, ref.location}:
                return ref.name
        names = [ref.name for ref in self.targets.models]
        raise _NoMatchError(
            "model",
            f"this suite has no model '{self.entry.model}'",
            did_you_mean(self.entry.model, names),
        )

    def treatment(self) -> Treatment | None:
        """The only treatment that fits; None if the options are wrong, which is noted already."""
        name = self.entry.method
        plugin = self.registry["method"].get(name)
        of_method = [one for one in self.targets.treatments if one.method.name == name]
        if plugin is None or not of_method:
            names = {one.method.name for one in self.targets.treatments}
            hint = hint_for_unknown(name, did_you_mean(name, names), self.registry)
            raise _NoMatchError("method", f"this suite has no method '{name}'", hint)
        path = (*self.path, "options")
        # The options go through the plugin: '0.50' and 0.5 must be equal here, too.
        asked = next(combinations(plugin, self.entry.options, path, self.problems), None)
        if asked is None:
            return None
        fitting = self.fitting(of_method, asked["given"])
        if len(fitting) == 1:
            return fitting[0]
        label = self.label(asked["given"])
        if fitting:
            several = ", ".join(f"'{one.label}'" for one in fitting)
            raise _NoMatchError(
                "options",
                f"'{label}' is each of {several}",
                "name the options that tell them apart",
            )
        hint = did_you_mean(label, [one.label for one in of_method])
        raise _NoMatchError("options", f"no cell is '{label}'", hint)

    def fitting(self, of_method: list[Treatment], given: dict[str, Any]) -> list[Treatment]:
        """The treatments with these options, this allocation and this recovery."""
        found: list[Treatment] = []
        for one in of_method:
            # `dense` is always there and may be in the file as well: equal treatments are one.
            new = _identity(one) not in map(_identity, found)
            options = all(one.method.options.get(key) == value for key, value in given.items())
            allocation = (one.allocation and one.allocation.name) == self.entry.allocation
            recovery = (one.recovery and one.recovery.name) == self.entry.recovery
            if new and options and allocation and recovery:
                found.append(one)
        return found

    def label(self, given: dict[str, Any]) -> str:
        words = [self.entry.method, *(f"{key}={value}" for key, value in given.items())]
        if self.entry.allocation:
            words.append(f"allocation={self.entry.allocation}")
        return " ".join(words) + (f" + {self.entry.recovery}" if self.entry.recovery else "")

    def measure(self) -> dict[str, Any]:
        """The fields of the figure that say which number it is."""
        entry, known = self.entry, [PERPLEXITY, *MODEL_METRICS, REMOVED_LAYERS]
        tasks = self.targets.tasks
        if tasks:
            known += [TASKS_MEAN, *tasks]
        if entry.metric not in known:
            message = f"no cell measures '{entry.metric}'"
            raise _NoMatchError("metric", message, did_you_mean(entry.metric, known))
        for task in entry.tasks or []:
            if task not in tasks:
                message = f"no cell measures '{task}'"
                raise _NoMatchError("tasks", message, did_you_mean(task, tasks))
        if entry.metric == REMOVED_LAYERS:
            return self.removed_layers()
        if entry.layers:
            message = f"'{entry.metric}' has no layers"
            raise _NoMatchError("layers", message, f"write `metric: {REMOVED_LAYERS}`")
        return self.perplexity() if entry.metric == PERPLEXITY else {}

    def removed_layers(self) -> dict[str, Any]:
        layers = tuple(dict.fromkeys(self.entry.layers or ()))
        if not layers or len(layers) != self.entry.value:
            raise _NoMatchError(
                "layers",
                f"the value is {self.entry.value:g}, and {len(layers)} layers are named",
                "name the layers that the publication removes; the value is their number",
            )
        return {"layers": layers}

    def perplexity(self) -> dict[str, Any]:
        entry, specs = self.entry, self.targets.perplexity
        fitting = [
            spec
            for spec in specs
            if entry.corpus in {None, spec.corpus.name}
            and entry.protocol in {None, spec.protocol}
            and entry.length in {None, spec.length}
        ]
        if len(fitting) == 1:
            [spec] = fitting
            return {"corpus": spec.corpus.name, "protocol": spec.protocol, "length": spec.length}
        if fitting:
            raise _NoMatchError(
                "metric", "several perplexities fit", "name `corpus`, `protocol` or `length`"
            )
        # Name the first key that nothing matches; if there is none, only the combination is wrong.
        for key, choices in (
            ("corpus", [spec.corpus.name for spec in specs]),
            ("protocol", [spec.protocol for spec in specs]),
            ("length", [str(spec.length) for spec in specs]),
        ):
            value = getattr(entry, key)
            if value is not None and str(value) not in choices:
                message = f"no cell measures perplexity with {key} {value}"
                raise _NoMatchError(key, message, did_you_mean(str(value), choices))
        raise _NoMatchError(
            "metric",
            "no cell measures that perplexity",
            "its corpus, protocol and length do not go together",
        )


class _NoMatchError(Exception):
    """A key of a figure that nothing in the suite matches."""

    def __init__(self, key: str, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.key, self.message, self.hint = key, message, hint
