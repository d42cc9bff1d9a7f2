"""`prunebench plugins show NAME`: what one plugin does, with every option."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli import completion
from prunebench.cli.options import plugin_option
from prunebench.cli.terminal import say, tell, width

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry, Registry

WIDTH = 110
LABEL = 12
"""Width of the names of facts."""

FACTS = {
    "title": "title",
    "licence": "licence",
    "splits": "splits",
    "parameters": "parameters",
    "needs_calibration": "calibration",
    "uses_seed": "seed",
    "trains": "trains",
    "needs_text": "text",
    "needs_tasks": "tasks",
}
"""Attributes of plugins that are shown, with their label."""


@click.command("show", short_help="Describe one plugin with all its options.")
@plugin_option
@click.argument("name", shell_complete=completion.plugins)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, *, as_json: bool) -> None:
    """Describe what is registered as NAME: its paper, what it removes, its options."""
    from prunebench.plugin.host import load_chosen_plugins

    registry = load_chosen_plugins()
    found = named(name, registry)
    if as_json:
        say(json.dumps([described(entry) for entry in found], indent=1))
        return
    # A name may belong to several kinds: all are shown.
    for position, entry in enumerate(found):
        if position:
            say()
        for line in _lines(described(entry)):
            tell(line, indent=_indent(line))


def _indent(line: str) -> int:
    """Lines after the first begin below the text of the first one, or two blanks further in."""
    property_ = re.match(r"  \w[\w ]{0,11} +(?=\S)", line)
    if property_ and len(property_[0]) == LABEL + 3:
        return LABEL + 3
    return len(line) - len(line.lstrip()) + 2


def named(name: str, registry: Registry) -> list[PluginEntry]:
    """Everything that is registered as ``name``. Raises PrunebenchError if nothing is."""
    from prunebench.engine.select import built_in
    from prunebench.errors import PrunebenchError, did_you_mean
    from prunebench.suite.problems import hint_for_unknown

    known = [*registry.entries(), *built_in()]
    found = [entry for entry in known if entry.name == name]
    if found:
        # One of a file that was given with --plugin comes first.
        return sorted(found, key=lambda entry: not entry.is_file)
    for problem in registry.problems:
        if name in {problem.plugin, problem.distribution.removeprefix("prunebench-")}:
            raise PrunebenchError(
                f"the plugin '{name}' of {problem.distribution} is not loaded: {problem.cause}",
                hint=problem.hint,
            )
    hint = did_you_mean(name, {entry.name for entry in known})
    from_files = [entry.name for entry in known if entry.is_file]
    if from_files and not hint.startswith("did you mean"):
        hint = f"the file given with --plugin registers {', '.join(from_files)}"
    raise PrunebenchError(
        f"no plugin is called '{name}'", hint=hint_for_unknown(name, hint, registry)
    )


def described(entry: PluginEntry) -> dict[str, Any]:
    """The facts as JSON data; keys that make no sense for the kind are left out."""
    from prunebench.plugin.describe import options_of, text_of

    value = entry.value
    facts: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "distribution": entry.distribution,
        "version": entry.version,
        "origin": entry.origin,
        "text": inspect.cleandoc(text_of(value)),
    }
    reference = getattr(value, "reference", None)
    if reference is not None:
        facts["reference"] = reference if isinstance(reference, str) else asdict(reference)
    facts |= {key: getattr(value, key) for key in FACTS if hasattr(value, key)}
    if published := getattr(value, "published_calibration", None):
        facts["published_calibration"] = dict(published)
    if entry.kind == "metric":
        facts["figures"] = {value.name: (value.unit, value.higher_is_better), **value.figures}
    if entry.kind == "method":
        facts |= _method_facts(value)
    if inspect.isclass(getattr(value, "Options", None)):
        facts["options"] = [asdict(option) for option in options_of(value.Options)]
    return facts


def _method_facts(method: Any) -> dict[str, Any]:
    return {
        "structures": sorted(method.structure),
        "allocation": _takes_allocation(method),
    }


def _takes_allocation(method: Any) -> bool:
    try:
        return method.refuses_allocation(method.Options()) is None
    except Exception:  # options without defaults, or a fault of the plugin: nothing is promised
        return False


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    kind = f"{_article(facts['kind'])} {facts['kind']}"
    origin = f"{facts['distribution']} {facts['version']} ({facts['origin']})"
    yield f"{facts['name']}: {kind} of {origin}"
    yield ""
    text = facts["text"] or "(its author describes it nowhere)"
    yield from textwrap.indent(text, "  ").splitlines()
    yield ""
    for label, value in _properties(facts):
        yield f"  {label:<{LABEL}} {value}"
    if "options" in facts:
        yield ""
        yield "  options" if facts["options"] else "  no options"
    for option in facts.get("options", ()):
        bounds = f" ({option['bounds']})" if option["bounds"] else ""
        yield f"    {option['name']}: {option['type']}{bounds} = {option['default']}"
        yield from textwrap.wrap(
            option["description"] or "(no description)",
            min(WIDTH, width() or WIDTH),
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
        )
        if option["only_with"]:
            yield f"        only with {option['only_with']}"


def _properties(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if reference := facts.get("reference"):
        yield "source", reference if isinstance(reference, str) else _reference(reference)
    if "structures" in facts:
        yield "removes", ", ".join(facts["structures"]) or "not stated"
        yield "families", "`prunebench families` says what works; `plugins check` tries it on some"
        allocation = "can give each layer its own sparsity" if facts["allocation"] else "takes none"
        yield "allocation", allocation
    for key, label in FACTS.items():
        if key in facts:
            yield label, _value(facts[key])
    if published := facts.get("published_calibration"):
        yield "published on", ", ".join(f"{key} {value}" for key, value in published.items())
    for name, (unit, higher) in facts.get("figures", {}).items():
        better = "higher" if higher else "lower"
        yield "gives", f"{name}{f', {unit}' if unit else ''}: {better} is better"


def _value(value: Any) -> str:
    # bool first: it is an int, too.
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _reference(reference: dict[str, Any]) -> str:
    arxiv = f"arXiv:{reference['arxiv']}" if reference.get("arxiv") else None
    return ", ".join(filter(None, [reference["title"], arxiv, reference.get("code")]))
