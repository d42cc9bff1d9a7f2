"""Finds plugins by their entry points and keeps what each one registers, one plugin at a time.

A plugin that cannot be imported, registers nonsense, or takes a name that is taken becomes a named problem;
the others are not touched by it. `PRUNEBENCH_PLUGINS` restricts loading: a comma-separated list of entry-point
or distribution names loads only these, names with a leading `-` are left out, an empty value loads none.
"""

from __future__ import annotations

import inspect
import logging
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.task_data import HUB, TaskData
from prunebench.model.source import ModelAsset
from prunebench.plugin import API_VERSION, NAME
from prunebench.plugin import hookspecs as spec
from prunebench.plugin.api.allocation import ALLOCATION, Allocation
from prunebench.plugin.api.engine import BUILT_IN, Engine
from prunebench.plugin.api.method import Method, Options
from prunebench.plugin.api.metric import TEXT, Metric
from prunebench.plugin.api.recovery import CALIBRATION, DATA, KEY, Recovery
from prunebench.plugin.api.report_section import ReportSection
from prunebench.plugin.files import PluginFile, plugin_files
from prunebench.plugin.lazy_imports import heavy_imports_later
from prunebench.plugin.trace import traced
from prunebench.text.corpus import Corpus

Kind = Literal[
    "method",
    "allocation",
    "recovery",
    "model",
    "corpus",
    "task data",
    "metric",
    "section",
    "engine",
]

RESTRICT = "PRUNEBENCH_PLUGINS"


@dataclass(frozen=True)
class PluginEntry:
    """One thing that a plugin offers, and where it comes from."""

    kind: Kind
    name: str
    value: Any
    distribution: str
    version: str
    origin: str


@dataclass(frozen=True)
class PluginProblem:
    """Why a plugin, or one thing that it registers, cannot be used."""

    plugin: str
    distribution: str
    version: str
    message: str
    details: str = ""
    status: Literal["problem", "disabled"] = "problem"


@dataclass
class Registry:
    """Everything that plugins registered, by name, and the problems met on the way."""

    methods: dict[str, PluginEntry] = field(default_factory=dict)
    allocations: dict[str, PluginEntry] = field(default_factory=dict)
    recoveries: dict[str, PluginEntry] = field(default_factory=dict)
    models: dict[str, PluginEntry] = field(default_factory=dict)
    corpora: dict[str, PluginEntry] = field(default_factory=dict)
    task_data: dict[str, PluginEntry] = field(default_factory=dict)
    metrics: dict[str, PluginEntry] = field(default_factory=dict)
    sections: dict[str, PluginEntry] = field(default_factory=dict)
    engines: dict[str, PluginEntry] = field(default_factory=dict)
    problems: list[PluginProblem] = field(default_factory=list)
    hooks: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(NAME))

    def of_kind(self, kind: Kind) -> dict[str, PluginEntry]:
        return {
            "method": self.methods,
            "allocation": self.allocations,
            "recovery": self.recoveries,
            "model": self.models,
            "corpus": self.corpora,
            "task data": self.task_data,
            "metric": self.metrics,
            "section": self.sections,
            "engine": self.engines,
        }[kind]

    def notify(self, hook: str, **facts: Any) -> None:
        """Call an observing hook of every plugin; one that raises is logged and disturbs nobody."""
        caller = getattr(self.hooks.hook, hook)
        for implementation in caller.get_hookimpls():
            try:
                given = [facts[name] for name in implementation.argnames]
                traced(hook, implementation.plugin_name, lambda: implementation.function(*given))  # noqa: B023
            except Exception:
                logging.getLogger(NAME).exception(
                    "%s of %s raised", hook, implementation.plugin_name
                )

    def all(self) -> list[PluginEntry]:
        kinds = (
            self.methods,
            self.allocations,
            self.recoveries,
            self.models,
            self.corpora,
            self.task_data,
            self.metrics,
            self.sections,
            self.engines,
        )
        return [registered for kind in kinds for registered in kind.values()]


@dataclass(frozen=True)
class _Registering:
    """A registering hook: what it offers and what a sound value looks like."""

    hook: str
    kind: Kind
    complain: Callable[[Any], str | None]


def _class_complaint(base: type, *reserved: str) -> Callable[[Any], str | None]:
    """What is wrong with a class that should be a ``base``; ``reserved`` stand beside its options in a suite."""

    def complain(value: Any) -> str | None:
        if not (inspect.isclass(value) and issubclass(value, base)):
            return f"returned {value!r}, not a subclass of prunebench.{base.__name__}"
        if inspect.isabstract(value):
            return f"{value.__name__} leaves {', '.join(sorted(getattr(value, '__abstractmethods__', ())))} undefined"
        options = getattr(value, "Options", None)
        if not (inspect.isclass(options) and issubclass(options, Options)):
            return f"{value.__name__}.Options is not a subclass of prunebench.Options"
        for name, option in options.model_fields.items():
            if taken := {name, option.alias} & set(reserved):
                return f"{value.__name__} has an option '{taken.pop()}', a key that suites need; give it another name"
        return None

    return complain


def _metric_complaint(value: Any) -> str | None:
    """What is wrong with a class that should be a metric."""
    complaint = _class_complaint(Metric, TEXT)(value)
    if complaint is None and not isinstance(getattr(value, "higher_is_better", None), bool):
        return f"{value.__name__}.higher_is_better is neither True nor False"
    return complaint


def _instance_complaint(kind: type, *reserved: str) -> Callable[[Any], str | None]:
    """What is wrong with an object that should be a ``kind``; ``reserved`` are names that mean something in a suite."""

    def complain(value: Any) -> str | None:
        if not isinstance(value, kind):
            return f"returned {value!r}, not a prunebench.{kind.__name__} object"
        name = getattr(value, "name", None)
        return (
            f"the name '{name}' means something else in a suite; take another"
            if name in reserved
            else None
        )

    return complain


def _engine_complaint(value: Any) -> str | None:
    """What is wrong with a class that should be an engine."""
    complaint = _class_complaint(Engine)(value)
    if complaint is None and getattr(value, "name", None) in BUILT_IN:
        return f"the engine '{value.name}' is built in; take another name"
    return complaint


def _section_complaint(value: Any) -> str | None:
    """What is wrong with a class that should be a section of the report."""
    if not (inspect.isclass(value) and issubclass(value, ReportSection)):
        return f"returned {value!r}, not a subclass of prunebench.ReportSection"
    if inspect.isabstract(value):
        return f"{value.__name__} leaves build undefined"
    return (
        None if isinstance(getattr(value, "title", None), str) else f"{value.__name__} has no title"
    )


_REGISTERING = (
    _Registering(
        "prunebench_register_method",
        "method",
        _class_complaint(Method, KEY, CALIBRATION, ALLOCATION),
    ),
    _Registering("prunebench_register_allocation", "allocation", _class_complaint(Allocation)),
    _Registering("prunebench_register_recovery", "recovery", _class_complaint(Recovery, DATA)),
    _Registering("prunebench_register_model_source", "model", _instance_complaint(ModelAsset)),
    _Registering("prunebench_register_corpus", "corpus", _instance_complaint(Corpus)),
    _Registering("prunebench_register_task_data", "task data", _instance_complaint(TaskData, HUB)),
    _Registering("prunebench_register_metric", "metric", _metric_complaint),
    _Registering("prunebench_register_report_section", "section", _section_complaint),
    _Registering("prunebench_register_engine", "engine", _engine_complaint),
)


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Registry:
    """Load every enabled plugin by itself.

    ``points`` defaults to the installed entry points of the group and the single files that the environment names
    (`prunebench.plugin.files`), which no restriction leaves out.
    """
    registry = Registry()
    registry.hooks.add_hookspecs(spec)
    found: list[EntryPoint | PluginFile] = list(
        entry_points(group=NAME) if points is None else points
    )
    if points is None:
        found += plugin_files()
    enabled = _restriction(os.environ.get(RESTRICT))
    with heavy_imports_later():
        for point in sorted(found, key=_built_ins_first):
            distribution, version = _origin(point)
            if not isinstance(point, PluginFile) and not enabled({point.name, distribution}):
                registry.problems.append(
                    PluginProblem(
                        point.name,
                        distribution,
                        version,
                        f"left out by {RESTRICT}",
                        status="disabled",
                    )
                )
                continue
            try:
                _load(point, registry, distribution, version)
            except (Exception, SystemExit) as error:
                last = traceback.format_exception_only(error)[-1].strip()
                registry.problems.append(
                    PluginProblem(
                        point.name, distribution, version, last, details=traceback.format_exc()
                    )
                )
    return registry


def _load(
    point: EntryPoint | PluginFile, registry: Registry, distribution: str, version: str
) -> None:
    module = point.load()
    wanted = getattr(module, "PRUNEBENCH_API", API_VERSION)
    if wanted != API_VERSION:
        raise PrunebenchError(
            f"written for plugin API {wanted}, this prunebench has API {API_VERSION}",
            hint=f"install a version of {distribution} for API {API_VERSION}",
        )
    registry.hooks.register(module, name=f"{distribution}:{point.name}")
    unknown = [
        name
        for name in dir(module)
        if registry.hooks.parse_hookimpl_opts(module, name) is not None and not hasattr(spec, name)
    ]
    if unknown:
        registry.hooks.unregister(module)
        raise PrunebenchError(
            f"implements unknown hooks: {', '.join(unknown)}",
            hint="prunebench.plugin.hookspecs has all",
        )
    offers: list[PluginEntry] = []
    for registering in _REGISTERING:
        implementation = getattr(module, registering.hook, None)
        if implementation is None:
            continue
        values = traced(registering.hook, f"{distribution}:{point.name}", implementation)
        for value in values if isinstance(values, list | tuple) else [values]:
            offers.append(
                _checked(
                    registering, value, distribution, version, getattr(module, "__file__", "") or ""
                )
            )
    for offer in offers:
        taken = registry.of_kind(offer.kind).get(offer.name)
        if taken is None:
            registry.of_kind(offer.kind)[offer.name] = offer
        else:
            registry.problems.append(
                PluginProblem(
                    point.name,
                    distribution,
                    version,
                    f"the {offer.kind} '{offer.name}' is already registered by {taken.distribution} {taken.version}; "
                    "that one is used",
                )
            )


def _checked(
    registering: _Registering, value: Any, distribution: str, version: str, origin: str
) -> PluginEntry:
    complaint = registering.complain(value)
    if complaint is None:
        name = getattr(value, "name", None)
        if not isinstance(name, str) or not name or name != name.strip():
            complaint = f"{value!r} has no name"
    if complaint is not None:
        raise PrunebenchError(f"{registering.hook}: {complaint}")
    return PluginEntry(registering.kind, value.name, value, distribution, version, origin)


def _restriction(setting: str | None) -> Callable[[set[str]], bool]:
    """Whether a plugin known by these names is to be loaded."""
    if setting is None:
        return lambda _: True
    words = {word.strip() for word in setting.split(",") if word.strip()}
    refused = {word[1:] for word in words if word.startswith("-")}
    wanted = {word for word in words if not word.startswith("-")}
    if refused and not wanted:
        return lambda names: not names & refused
    return lambda names: bool(names & wanted) and not names & refused


def _origin(point: EntryPoint | PluginFile) -> tuple[str, str]:
    if isinstance(point, PluginFile):
        return point.origin
    if point.dist is None:
        return "unknown", "unknown"
    return point.dist.name, point.dist.version


def _built_ins_first(point: EntryPoint | PluginFile) -> tuple[bool, str, str]:
    """So that nobody takes the name of a built-in by being loaded before it."""
    distribution, _ = _origin(point)
    return (distribution != NAME, distribution, point.name)
