"""Options that a suite names although they change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prunebench.errors import first_line

if TYPE_CHECKING:
    from prunebench.plugin.api.effect import NoEffect
    from prunebench.plugin.registry import PluginEntry
    from prunebench.suite.problems import Problems
    from prunebench.suite.yaml import KeyPath


def effective(
    entry: PluginEntry, found: Iterable[dict[str, Any]], path: KeyPath, problems: Problems
) -> list[dict[str, Any]]:
    """The combinations of one entry's options without those that repeat another.

    ``found`` are fields of a `PluginRef`, in all of which the same options are given. A given
    option without effect in every one of them is a problem; with an effect in some, or if it only
    spells out its default, it is a warning. Combinations that differ in nothing else are one.
    """
    every = [(fields, _without_effect(entry, fields, path, problems)) for fields in found]
    for key in every[0][0]["given"] if every else ():
        reasons = [idle[key] for _, idle in every if key in idle]
        if not reasons:
            continue
        spelt_out = all(_is_default(entry, key, fields["options"]) for fields, _ in every)
        report = problems.warn if spelt_out or len(reasons) < len(every) else problems.add
        report((*path, key), *_said(reasons))
    unique: dict[str, dict[str, Any]] = {}
    for fields, idle in every:
        # The label leaves out what changes nothing.
        named = {key: value for key, value in fields["given"].items() if key not in idle}
        options = fields["options"]
        used = {key: value for key, value in options.items() if key not in idle}
        same = json.dumps(used, sort_keys=True)
        # One with defaults wins: it has the id of an entry that does not name these options.
        if same not in unique or all(_is_default(entry, key, options) for key in idle):
            unique[same] = {**fields, "given": named}
    return list(unique.values())


def _without_effect(
    entry: PluginEntry, fields: Mapping[str, Any], path: KeyPath, problems: Problems
) -> Mapping[str, NoEffect]:
    try:
        options = entry.value.Options.model_validate(fields["options"])
        reasons: Mapping[str, NoEffect] = options.without_effect()
    except Exception as error:  # the plugin's own code
        said = f"{type(error).__name__}: {first_line(error)}"
        problems.add(path, f"{entry.distribution} cannot say which options matter: {said}")
        return {}
    return reasons


def _said(reasons: list[NoEffect]) -> tuple[str, str]:
    """Message and hint."""
    because = " or ".join(f"`{one}`" for one in dict.fromkeys(each.because for each in reasons))
    instead = next((each.instead for each in reasons if each.instead), None)
    hint = "leave it out" if instead is None else f"leave it out, or write `{instead}`"
    return f"has no effect with {because}", hint


def _is_default(entry: PluginEntry, key: str, options: Mapping[str, Any]) -> bool:
    fields = entry.value.Options.model_fields
    field = next(field for name, field in fields.items() if (field.alias or name) == key)
    default = field.get_default(call_default_factory=True, validated_data={})
    return bool(options[key] == default)
