"""What a shell completes beside commands and options: suites, models, methods, plugins, options.

The values of OPTION=VALUE are the user's; their names come from the plugin on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from prunebench.plugin.registry import PluginEntry, Registry

Complete = Callable[["click.Context", "click.Parameter", str], "list[CompletionItem]"]


def suites(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    from prunebench.suite.source import shipped

    return [*_matching(shipped(), begun), _file(begun)]


def models(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return [*_matching(_names("model"), begun), _file(begun)]


def methods(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return _matching(_names("method"), begun)


def engines(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return _matching(_names("engine"), begun)


def runtimes(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return _matching(_names("runtime"), begun)


def plugins(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return _matching(_names(), begun)


def families(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    from prunebench.plugin.lazy_imports import heavy_imports_later

    with heavy_imports_later():  # the families' names need no torch
        from prunebench.model.supported import causal_types
    return _matching(causal_types(), begun)


def calibration(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """KEY=, and the corpora behind corpus=."""
    if begun.startswith("corpus="):
        return _matching([f"corpus={name}" for name in _names("corpus")], begun)
    from prunebench.suite.schema import CalibrationEntry

    return _matching([f"{key}=" for key in CalibrationEntry.model_fields], begun)


def options_of(parameter: str) -> Complete:
    """OPTION= for every option of the plugin that the argument ``parameter`` names."""

    def complete(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
        from prunebench.plugin.describe import options_of as described

        name = context.params.get(parameter)
        kinds = (
            ("method", "allocation", "recovery", "metric", "runtime")
            if parameter == "name"
            else ("method",)
        )
        entry = next((one for one in _entries() if one.name == name and one.kind in kinds), None)
        if entry is None:
            return []
        words = [f"{option.name}=" for option in described(entry.value.Options)]
        if entry.kind == "method":
            words += ["allocation=", "recovery="]
        given = {str(word).partition("=")[0] for word in context.params.get("options") or ()}
        return _matching([word for word in words if word[:-1] not in given], begun)

    return complete


def _registry() -> Registry:
    from prunebench.plugin.host import load_chosen_plugins

    return load_chosen_plugins()


def _entries() -> list[PluginEntry]:
    from prunebench.engine.select import built_in

    return [*_registry().entries(), *built_in()]


def _names(kind: str | None = None) -> Iterable[str]:
    return dict.fromkeys(entry.name for entry in _entries() if kind in (None, entry.kind))


def _matching(words: Iterable[str], begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(begun)]


def _file(begun: str) -> Any:
    """Lets the shell add the files that begin so."""
    from click.shell_completion import CompletionItem

    return CompletionItem(begun, type="file")
