"""`expect:` of a suite: published figures, each held against the cells that should reproduce it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from prunebench.errors import did_you_mean
from prunebench.record.expectations import (
    MODEL_METRICS,
    PERPLEXITY,
    TASKS_MEAN,
    Expectation,
    default_tolerance,
)
from prunebench.suite.options import combinations
from prunebench.suite.problems import Problems, absent
from prunebench.suite.source import SET

if TYPE_CHECKING:
    from prunebench.experiment.cell import Cell
    from prunebench.experiment.measures import PerplexitySpec
    from prunebench.experiment.model import ModelRef
    from prunebench.plugin.registry import Registry
    from prunebench.suite.methods import Treatment
    from prunebench.suite.schema import ExpectEntry
    from prunebench.suite.yaml import Path


T = TypeVar("T")


@dataclass(frozen=True)
class ExpectedFigure:
    """A published figure, and which model and treatment it is of."""

    figure: Expectation
    model: str
    treatment: Treatment

    def among(self, cells: Iterable[Cell]) -> Expectation:
        """The figure with the ids of its cells."""
        ids = tuple(cell.id for cell in cells if self._fits(cell))
        return self.figure.model_copy(update={"cells": ids})

    def _fits(self, cell: Cell) -> bool:
        return cell.model.name == self.model and _what(cell) == _what(self.treatment)


@dataclass(frozen=True)
class AvailableTargets:
    """What the cells of a suite are and measure."""

    models: Sequence[ModelRef]
    treatments: Sequence[Treatment]
    perplexity: Sequence[PerplexitySpec]
    tasks: Sequence[str]


def resolve(
    entries: Sequence[ExpectEntry],
    offered: AvailableTargets,
    registry: Registry,
    problems: Problems,
) -> Iterator[ExpectedFigure]:
    """Find the cells of every published figure; one that fits none goes to ``problems``.

    Where the command line changed the suite, figures that no longer fit are left out without a word: they belong to
    the suite as it is published.
    """
    changed = any(place.startswith(SET) for place in problems.source.where.values())
    found = Problems(problems.source)
    for index, entry in enumerate(entries):
        wanted = _One(entry, ("expect", index), offered, registry, found).wanted()
        if wanted is not None:
            yield wanted
    if not changed:
        problems.errors += found.errors


def _what(one: Cell | Treatment) -> dict[str, Any]:
    """What is done to the model, however the suite writes it."""
    method = one.method.model_dump(exclude={"given"})
    spread = one.allocation and one.allocation.model_dump(exclude={"given"})
    return {
        "method": method,
        "allocation": spread,
        "recovery": one.recovery and one.recovery.model_dump(exclude={"given"}),
    }


@dataclass(frozen=True)
class _One:
    entry: ExpectEntry
    path: Path
    offered: AvailableTargets
    registry: Registry
    problems: Problems

    def wanted(self) -> ExpectedFigure | None:
        model, treatment, measured = (
            self.tried(self.model),
            self.tried(self.treatment),
            self.tried(self.metric),
        )
        if model is None or treatment is None or measured is None:
            return None
        entry = self.entry
        figure = Expectation(
            model=model,
            method=treatment.label,
            metric=entry.metric,
            tasks=tuple(entry.tasks or ()),
            value=entry.value,
            tolerance=default_tolerance(entry.metric)
            if entry.tolerance is None
            else entry.tolerance,
            source=entry.source,
            **measured,
        )
        return ExpectedFigure(figure, model, treatment)

    def model(self) -> str:
        for ref in self.offered.models:
            if self.entry.model in {ref.name, ref.location}:
                return ref.name
        names = [ref.name for ref in self.offered.models]
        raise _UnfitError(
            "model",
            f"this suite has no model '{self.entry.model}'",
            did_you_mean(self.entry.model, names),
        )

    def treatment(self) -> Treatment | None:
        entry = self.entry
        registered = self.registry["method"].get(entry.method)
        here = [each for each in self.offered.treatments if each.method.name == entry.method]
        if registered is None or not here:
            names = {each.method.name for each in self.offered.treatments}
            hint = absent(entry.method, did_you_mean(entry.method, names), self.registry)
            raise _UnfitError("method", f"this suite has no method '{entry.method}'", hint)
        asked = next(
            combinations(registered, entry.options, (*self.path, "options"), self.problems), None
        )
        if asked is None:
            return None
        given: dict[str, Any] = asked["given"]
        fitting = [
            each
            for place, each in enumerate(here)
            if _what(each)
            not in map(_what, here[:place])  # dense, which may stand in the file as well
            and all(each.method.options.get(key) == value for key, value in given.items())
            and (each.allocation and each.allocation.name) == entry.allocation
            and (each.recovery and each.recovery.name) == entry.recovery
        ]
        if len(fitting) == 1:
            return fitting[0]
        words = [entry.method, *(f"{key}={value}" for key, value in given.items())]
        words += [f"allocation={entry.allocation}"] if entry.allocation else []
        label = " ".join(words) + (f" + {entry.recovery}" if entry.recovery else "")
        if fitting:
            several = ", ".join(f"'{each.label}'" for each in fitting)
            raise _UnfitError(
                "options",
                f"'{label}' is each of {several}",
                "name the options that tell them apart",
            )
        raise _UnfitError(
            "options", f"no cell is '{label}'", did_you_mean(label, [each.label for each in here])
        )

    def metric(self) -> dict[str, Any]:
        """The fields of the figure that say which number is meant."""
        entry, known = self.entry, [PERPLEXITY, *MODEL_METRICS]
        if self.offered.tasks:
            known += [TASKS_MEAN, *self.offered.tasks]
        if entry.metric not in known:
            message = f"no cell measures '{entry.metric}'"
            raise _UnfitError("metric", message, did_you_mean(entry.metric, known))
        for task in entry.tasks or []:
            if task not in self.offered.tasks:
                raise _UnfitError(
                    "tasks", f"no cell measures '{task}'", did_you_mean(task, self.offered.tasks)
                )
        return self.perplexity() if entry.metric == PERPLEXITY else {}

    def perplexity(self) -> dict[str, Any]:
        entry, specs = self.entry, self.offered.perplexity
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
            raise _UnfitError(
                "metric", "several perplexities fit", "name `corpus`, `protocol` or `length`"
            )
        for key, choices in (
            ("corpus", [spec.corpus.name for spec in specs]),
            ("protocol", [spec.protocol for spec in specs]),
            ("length", [str(spec.length) for spec in specs]),
        ):
            value = getattr(entry, key)
            if value is not None and str(value) not in choices:
                raise _UnfitError(
                    key,
                    f"no cell measures perplexity with {key} {value}",
                    did_you_mean(str(value), choices),
                )
        raise _UnfitError(
            "metric",
            "no cell measures that perplexity",
            "its corpus, protocol and length do not go together",
        )

    def tried(self, find: Callable[[], T | None]) -> T | None:
        try:
            return find()
        except _UnfitError as error:
            self.problems.add((*self.path, error.key), error.message, error.hint)
            return None


class _UnfitError(Exception):
    """A key of a figure that fits nothing in the suite."""

    def __init__(self, key: str, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.key, self.message, self.hint = key, message, hint
