"""`quality.metrics`: looked up, fanned out, each with its text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.plugins import MetricRef
from prunebench.plugin.suite_keys import DATA
from prunebench.suite.lookup import Lookup, NamedPlugin
from prunebench.suite.texts import Texts

if TYPE_CHECKING:
    from prunebench.suite.yaml import KeyPath


def metric_refs(
    entries: Sequence[Any], lookup: Lookup, texts: Texts, *, has_tasks: bool
) -> tuple[MetricRef, ...]:
    """Every metric that the entries name; equal ones are one."""
    found: dict[str, MetricRef] = {}
    for index, entry in enumerate(entries):
        path = ("quality", "metrics", index)
        for ref in _expand(entry, path, lookup, texts):
            if not has_tasks and lookup.registry["metric"][ref.name].value.needs_tasks:
                lookup.problems.add(
                    path,
                    f"'{ref.name}' looks at the answers to tasks, and the suite has none",
                    "add for example tasks: [arc_easy, hellaswag] to quality",
                )
            found.setdefault(json.dumps(ref.identity(), sort_keys=True), ref)
    return tuple(found.values())


def _expand(written: Any, path: KeyPath, lookup: Lookup, texts: Texts) -> Iterator[MetricRef]:
    named = lookup.plugin(written, path, "metric")
    if named is None:
        return
    data = _data(named, lookup, texts)
    # The options are checked even if the text is wrong, so that all errors come at once.
    for fields in lookup.combinations(named, DATA):
        if data is not None or not named.entry.value.needs_text:
            yield MetricRef(**fields, data=data)


def _data(named: NamedPlugin, lookup: Lookup, texts: Texts) -> PerplexitySpec | None:
    """The windows that it looks at: its own, else those of the suite's first perplexity."""
    written = named.options.get(DATA)
    if not named.entry.value.needs_text:
        if written is not None:
            lookup.problems.add(
                (*named.path, DATA),
                f"'{named.name}' looks at no text",
                f"leave `{DATA}` out of its options",
            )
        return None
    if written is not None:
        return texts.metric(written, (*named.path, DATA))
    if not texts.has_perplexity:
        lookup.problems.add(
            named.path,
            f"'{named.name}' needs text, and neither it nor quality.perplexity names one",
            f"add for example {DATA}: {{corpus: boolq-passages, windows: 4, length: 512}} "
            "to its options",
        )
    shared = next(iter(texts.perplexity), None)
    # Metrics compare whole windows; a protocol may let perplexity count a shorter last one.
    return shared and shared.model_copy(update={"tail": False})
