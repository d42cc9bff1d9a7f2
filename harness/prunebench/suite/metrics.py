"""`quality.metrics`: names and options looked up, lists fanned out, the text of each found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prunebench.experiment.measures import PerplexitySpec
from prunebench.experiment.plugins import MetricRef
from prunebench.plugin.suite_keys import DATA
from prunebench.suite.options import combinations, look_up, name_and_options
from prunebench.suite.problems import Problems, fields_of
from prunebench.suite.schema import TextEntry

if TYPE_CHECKING:
    from prunebench.plugin.registry import Registry
    from prunebench.suite.yaml import Path

Resolve = Callable[[TextEntry, "Path"], PerplexitySpec | None]


def metric_refs(
    entries: Sequence[Any],
    registry: Registry,
    problems: Problems,
    default: PerplexitySpec | None,
    resolve: Resolve,
    *,
    measured: bool,
) -> tuple[MetricRef, ...]:
    """Every metric that the entries name, each experiment once; what is wrong with them goes to ``problems``.

    ``default`` is the text of metrics without `data:`, ``resolve`` looks up what a `data:` names, and ``measured`` says
    whether the suite has a perplexity, be it a wrong one.
    """
    found: dict[str, MetricRef] = {}
    for place, entry in enumerate(entries):
        path: Path = ("quality", "metrics", place)
        for ref in _expand(entry, path, registry, problems, default, resolve, measured=measured):
            found.setdefault(json.dumps(ref.identity(), sort_keys=True), ref)
    return tuple(found.values())


def _expand(
    entry: Any,
    path: Path,
    registry: Registry,
    problems: Problems,
    default: PerplexitySpec | None,
    resolve: Resolve,
    *,
    measured: bool,
) -> Iterator[MetricRef]:
    named = name_and_options(
        entry, path, problems, noun="metric", example="{kl-divergence: {data: {corpus: my.txt}}}"
    )
    if named is None:
        return
    name, options = named
    at = (*path, name) if isinstance(entry, dict) else path
    registered = look_up(name, registry["metric"], at, registry, problems, noun="metric")
    if registered is None:
        return
    looks, own = registered.value.needs_text, options.get(DATA)
    data = None
    if own is not None and not looks:
        problems.add(
            (*at, DATA), f"'{name}' looks at no text", f"leave `{DATA}` out of its options"
        )
    elif own is not None:
        data = _text(own, (*at, DATA), problems, resolve)
    elif looks:
        data = default and default.model_copy(update={"tail": False})
        if not measured:
            problems.add(
                at,
                f"'{name}' needs text, and neither it nor quality.perplexity names one",
                f"add for example {DATA}: {{corpus: boolq-passages, windows: 4, length: 512}} to its options",
            )
    rest = {key: value for key, value in options.items() if key != DATA}
    for fields in combinations(
        registered, rest, at, problems
    ):  # checked also where the text is wrong
        if data is not None or not looks:
            yield MetricRef(**fields, data=data)


def _text(value: Any, path: Path, problems: Problems, resolve: Resolve) -> PerplexitySpec | None:
    known = fields_of(TextEntry)
    try:
        entry = TextEntry.model_validate(value)
    except ValidationError as error:
        problems.add_validation(path, value, error, lambda inside: None if inside else known)
        return None
    return resolve(entry, path)
