"""Find plugins by their entry points, load them, and collect what they register.

A plugin that cannot be imported, or that registers something invalid, becomes a problem with its
name on it, and all other plugins load as if it were not installed. `PRUNEBENCH_PLUGINS` restricts
loading: it lists names of entry points or distributions, separated by commas. Names with a leading
`-` are left out; if there are others, only those are loaded. An empty value loads none.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy

from prunebench.errors import PrunebenchError, did_you_mean
from prunebench.plugin import API_VERSION, NAME, hookspecs
from prunebench.plugin.files import PluginFile, plugin_files
from prunebench.plugin.kinds import KINDS
from prunebench.plugin.lazy_imports import heavy_imports_later
from prunebench.plugin.registry import Kind, PluginEntry, PluginProblem, Registry, call_order
from prunebench.plugin.trace import traced

RESTRICT = "PRUNEBENCH_PLUGINS"
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("prunebench_"))
_HOOK_NAMES = ("prunebench_register", "prunebench_cell_")
"""What the name of every hook begins with; another function with such a name is a mistake."""


@dataclass(frozen=True)
class _Plugin:
    """One entry point, or one single file, and where it comes from."""

    point: EntryPoint | PluginFile
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def key(self) -> str:
        """Its name in the plugin manager."""
        return f"{self.distribution}:{self.name}"

    @property
    def is_file(self) -> bool:
        return isinstance(self.point, PluginFile)

    def problem(
        self, error: BaseException | str, status: Literal["problem", "disabled"] = "problem"
    ) -> PluginProblem:
        """``error`` in one line, with its traceback as details."""
        details, hint = "", None
        if isinstance(error, str):
            cause = error
        elif isinstance(error, PrunebenchError):
            cause, hint = error.message, error.hint
        else:
            cause = traceback.format_exception_only(error)[-1].strip() + self._line_of(error)
        if isinstance(error, BaseException):
            details = "".join(traceback.format_exception(error))
        return PluginProblem(
            self.name, self.distribution, self.version, cause, details, status, hint, self.is_file
        )

    def _line_of(self, error: BaseException) -> str:
        """The line of a plugin's file that raised ``error``, to end a message with."""
        if not isinstance(self.point, PluginFile):
            return ""
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(self.point.path)
        ]
        if isinstance(error, SyntaxError) and error.filename == str(self.point.path):
            lines.append(error.lineno or 1)
        return f": {self.distribution}:{lines[-1]}" if lines else ""


def load_chosen_plugins() -> Registry:
    """`load_plugins` for a command: a file that somebody named with --plugin must be usable.

    Raises PrunebenchError with everything that is wrong with such files.
    """
    registry = load_plugins()
    faults = [problem for problem in registry.problems if problem.file]
    if len(faults) == 1:
        raise PrunebenchError(f"{faults[0].distribution}: {faults[0].cause}", hint=faults[0].hint)
    if faults:
        raise PrunebenchError("\n".join(f"{one.distribution}: {one.message}" for one in faults))
    return registry


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Registry:
    """Load every enabled plugin and return what they register.

    ``points`` defaults to the installed entry points of the group, plus the single files that the
    environment names (`prunebench.plugin.files`); `PRUNEBENCH_PLUGINS` does not restrict the files.
    """
    registry = Registry()
    registry.hooks.add_hookspecs(hookspecs)
    with heavy_imports_later():
        plugins = [plugin for plugin in _found(points) if _enabled(plugin, registry)]
        # pluggy calls the plugin registered last first. Registered from last to first, plugins are
        # called in our order: the built-in ones, then the others by name.
        for plugin in reversed(plugins):
            try:
                _register(plugin, registry.hooks)
            except (Exception, SystemExit) as error:  # a script may call sys.exit when imported
                registry.problems.append(plugin.problem(error))
        _collect({plugin.key: plugin for plugin in plugins}, registry)
    return registry


def built_in_modules() -> list[str]:
    """The modules of prunebench's own plugins that `PRUNEBENCH_PLUGINS` does not leave out."""
    allowed = _restriction()
    return [
        each.point.module
        for each in _found(None)
        if isinstance(each.point, EntryPoint)
        and each.distribution == NAME
        and allowed({each.name, NAME})
    ]


def _found(points: Iterable[EntryPoint] | None) -> list[_Plugin]:
    """The plugins to load: the built-in ones, files, then the others by their distribution."""
    found = [*entry_points(group=NAME), *plugin_files()] if points is None else list(points)
    known: dict[int, tuple[str, str]] = {}
    plugins = [_Plugin(point, *_origin(point, known)) for point in found]
    return sorted(plugins, key=lambda plugin: (*_rank(plugin), plugin.distribution, plugin.name))


def _rank(plugin: _Plugin) -> tuple[bool, bool]:
    """Of two equal names the built-in one is used, then the one of a file that a user named."""
    return plugin.distribution != NAME, not plugin.is_file


def _origin(point: EntryPoint | PluginFile, known: dict[int, tuple[str, str]]) -> tuple[str, str]:
    """(name, version) of the distribution; ``known`` keeps those of all distributions so far."""
    if isinstance(point, PluginFile):
        return point.origin
    if point.dist is None:
        return "unknown", "unknown"
    # Each of the two parses all metadata, and many plugins come from one distribution.
    key = id(point.dist)
    if key not in known:
        known[key] = (point.dist.name, point.dist.version)
    return known[key]


def _enabled(plugin: _Plugin, registry: Registry) -> bool:
    """Whether to load ``plugin``. One that is left out is noted among the problems as disabled."""
    if isinstance(plugin.point, PluginFile):
        return True
    why = None
    if not _restriction()({plugin.name, plugin.distribution}):
        why = f"left out by {RESTRICT}"
    elif file := _same_file(plugin.point):
        why = f"left out, because --plugin names the same file, {file}"
    if why is not None:
        registry.problems.append(plugin.problem(why, "disabled"))
    return why is None


def _same_file(point: EntryPoint) -> Path | None:
    """The file named with --plugin that is also the module of this entry point."""
    for file in plugin_files():
        if point.module.rpartition(".")[2] == file.name:
            with suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(point.module)
                if spec is not None and spec.origin and Path(spec.origin).resolve() == file.path:
                    return file.path
    return None


def _restriction() -> Callable[[set[str]], bool]:
    """Whether PRUNEBENCH_PLUGINS lets a plugin with these names load."""
    setting = os.environ.get(RESTRICT)
    if setting is None:
        return lambda _: True
    words = {word.strip() for word in setting.split(",") if word.strip()}
    refused = {word[1:] for word in words if word.startswith("-")}
    wanted = {word for word in words if not word.startswith("-")}
    if refused and not wanted:
        return lambda names: not names & refused
    return lambda names: bool(names & wanted) and not names & refused


def _register(plugin: _Plugin, manager: pluggy.PluginManager) -> None:
    """Import a plugin and give its hooks to the manager; raise if it is not valid."""
    module = plugin.point.load()
    wanted = getattr(module, "PRUNEBENCH_API", API_VERSION)
    if wanted != API_VERSION:
        raise PrunebenchError(
            f"written for plugin API {wanted}, this prunebench has API {API_VERSION}",
            hint=f"install a version of {plugin.distribution} for API {API_VERSION}",
        )
    try:
        manager.register(module, name=plugin.key)
        _check_hooks(module, manager)
    except BaseException:
        # pluggy keeps what it registered before it found a fault. If the name was taken, the plugin
        # with that name is another one and stays.
        if manager.get_plugin(plugin.key) is module:
            manager.unregister(module)
        raise


def _check_hooks(module: Any, manager: pluggy.PluginManager) -> None:
    """Raise PrunebenchError for functions that look like hooks but would not be called as such."""
    unmarked = [
        name
        for name in HOOKS
        if callable(getattr(module, name, None))
        and manager.parse_hookimpl_opts(module, name) is None
    ]
    if unmarked:
        raise PrunebenchError(
            f"{', '.join(unmarked)} is not marked as a hook implementation",
            hint="decorate it with @hookimpl, which prunebench exports",
        )
    callers = manager.get_hookcallers(module) or ()
    for name, value in vars(module).items():
        looks_like_one = inspect.isfunction(value) and name.startswith(_HOOK_NAMES)
        if looks_like_one and manager.parse_hookimpl_opts(module, name) is None:
            raise _unknown_hook(name)
    if not callers:
        raise PrunebenchError(
            "implements no hook, so it registers nothing",
            hint="end it with a function such as prunebench_register_method, decorated with"
            " @hookimpl, that returns your class",
        )
    for caller in callers:
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not module:
                continue
            if not (caller.has_spec() or implementation.optionalhook):
                raise _unknown_hook(caller.name)
            if implementation.wrapper or implementation.hookwrapper:
                raise PrunebenchError(
                    f"implements {caller.name} as a wrapper, which prunebench does not support",
                    hint="leave out `wrapper` and `hookwrapper`: plugins are called one by one",
                )


def _unknown_hook(name: str) -> PrunebenchError:
    return PrunebenchError(f"implements the unknown hook {name}", hint=did_you_mean(name, HOOKS))


def _collect(plugins: dict[str, _Plugin], registry: Registry) -> None:
    """Call the registering hooks, and enter what they return; of a plugin with a fault, nothing."""
    offers: list[tuple[_Plugin, PluginEntry]] = []
    faulty: dict[str, list[PluginProblem]] = {}
    for kind, rules in KINDS.items():
        # One by one, not `hooks.hook.x()`: pluggy stops at the first exception.
        for implementation in call_order(getattr(registry.hooks.hook, rules.hook)):
            plugin = plugins[implementation.plugin_name]
            try:
                offers += [(plugin, entry) for entry in _offered(kind, implementation, plugin)]
            except (Exception, SystemExit) as error:
                faulty.setdefault(plugin.key, []).append(plugin.problem(error))
    for key, problems in faulty.items():
        registry.hooks.unregister(name=key)
        registry.problems += problems
    # Not even `tryfirst` takes the name of something built in: results would no longer compare.
    offers.sort(key=lambda offer: _rank(offer[0]))
    for plugin, entry in offers:
        if plugin.key not in faulty:
            _enter(entry, plugin, registry)


def _offered(kind: Kind, implementation: pluggy.HookImpl, plugin: _Plugin) -> Iterator[PluginEntry]:
    """What one implementation of a registering hook returns. Raises PrunebenchError if invalid."""
    rules = KINDS[kind]
    returned: Any = traced(rules.hook, plugin.key, implementation.function)
    values: list[Any] = list(returned) if isinstance(returned, list | tuple) else [returned]
    origin = getattr(implementation.plugin, "__file__", None) or ""
    for value in values:
        if complaint := rules.complaint(value):
            raise PrunebenchError(f"{rules.hook}: {complaint}")
        yield PluginEntry(kind, value.name, value, plugin.distribution, plugin.version, origin)


def _enter(entry: PluginEntry, plugin: _Plugin, registry: Registry) -> None:
    taken = registry[entry.kind].setdefault(entry.name, entry)
    if taken is not entry:
        registry.problems.append(
            plugin.problem(
                PrunebenchError(
                    f"the {entry.kind} '{entry.name}' is already registered by"
                    f" {taken.distribution} {taken.version}; that one is used",
                    hint="give yours another name",
                )
            )
        )
