"""`prunebench plugins show NAME`: what one plugin does, with every option."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.options import plugin_option

if TYPE_CHECKING:
    from prunebench.plugin.registry import PluginEntry, Registry

WIDTH = 110


@click.command("show", short_help="Describe one plugin with all its options.")
@plugin_option
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(name: str, *, as_json: bool) -> None:
    """Say what the method, allocation, recovery, metric, model, corpus, task data or engine NAME is: its paper, what it removes, its options."""
    from prunebench.plugin.host import load_plugins

    registry = load_plugins()
    found = named(name, registry)
    if as_json:
        click.echo(json.dumps([described(entry) for entry in found], indent=1))
        return
    for place, entry in enumerate(found):
        if place:
            click.echo()
        for line in _lines(described(entry)):
            click.echo(line)


def named(name: str, registry: Registry) -> list[PluginEntry]:
    """Everything of that name. Raises PrunebenchError where there is nothing."""
    from prunebench.engine.select import built_in
    from prunebench.errors import PrunebenchError, did_you_mean
    from prunebench.suite.problems import hint_for_unknown

    known = [*registry.entries(), *built_in()]
    found = [entry for entry in known if entry.name == name]
    if not found:
        hint = did_you_mean(name, {entry.name for entry in known})
        raise PrunebenchError(
            f"no plugin is called '{name}'", hint=hint_for_unknown(name, hint, registry)
        )
    return found


def described(entry: PluginEntry) -> dict[str, Any]:
    """What there is to say, as plain data; keys that make no sense for the kind are left out."""
    from prunebench.plugin.describe import options_of, text_of
    from prunebench.plugin.lazy_imports import heavy_imports_later

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
    for key in (
        "title",
        "licence",
        "splits",
        "parameters",
        "needs_calibration",
        "uses_seed",
        "trains",
    ):
        if hasattr(value, key):
            facts[key] = getattr(value, key)
    if entry.kind == "metric":
        facts["needs_text"] = value.needs_text
        facts["figures"] = {value.name: (value.unit, value.higher_is_better), **value.figures}
    if entry.kind == "method":
        with heavy_imports_later():
            from prunebench.model.families import FAMILIES
        facts["structures"] = sorted(value.structure)
        facts["families"] = list(FAMILIES)
        facts["allocation"] = _takes_allocation(value)
    if inspect.isclass(getattr(value, "Options", None)):
        facts["options"] = [asdict(option) for option in options_of(value.Options)]
    return facts


def _takes_allocation(method: Any) -> bool:
    try:
        return method.refuses_allocation(method.Options()) is None
    except Exception:  # options without defaults, or a plugin's own fault: nothing is promised
        return False


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['name']}: {_article(facts['kind'])} {facts['kind']} of {facts['distribution']} {facts['version']} ({facts['origin']})"
    yield ""
    yield from textwrap.indent(
        facts["text"] or "(its author says nothing of it)", "  "
    ).splitlines()
    yield ""
    if reference := facts.get("reference"):
        yield f"  source       {reference if isinstance(reference, str) else _reference(reference)}"
    if "structures" in facts:
        yield f"  removes      {', '.join(facts['structures']) or 'not stated'}"
        yield f"  families     {', '.join(facts['families'])}: those known here; `plugins check` tries it on some"
        yield f"  allocation   {'may spread its share' if facts['allocation'] else 'takes none'}"
    for key, words in (
        ("title", "title"),
        ("licence", "licence"),
        ("splits", "splits"),
        ("parameters", "parameters"),
    ):
        if key in facts:
            value = facts[key]
            yield f"  {words:<12} {', '.join(value) if isinstance(value, (list, tuple)) else value}"
    for key, words in (
        ("needs_calibration", "calibration"),
        ("uses_seed", "seed"),
        ("trains", "trains"),
        ("needs_text", "text"),
    ):
        if key in facts:
            yield f"  {words:<12} {'yes' if facts[key] else 'no'}"
    for name, (unit, higher) in facts.get("figures", {}).items():
        yield f"  gives        {name}{f', {unit}' if unit else ''}: {'higher' if higher else 'lower'} is better"
    if "options" in facts:
        yield ""
        yield "  options" if facts["options"] else "  no options"
    for option in facts.get("options", ()):
        bounds = f" ({option['bounds']})" if option["bounds"] else ""
        yield f"    {option['name']}: {option['type']}{bounds} = {option['default']}"
        yield from textwrap.wrap(
            option["description"] or "(no description)",
            WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
        )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _reference(reference: dict[str, Any]) -> str:
    arxiv = f"arXiv:{reference['arxiv']}" if reference.get("arxiv") else None
    return ", ".join(filter(None, [reference["title"], arxiv, reference.get("code")]))
