"""The registry has every kind, and the table of kinds has rules for each."""

from __future__ import annotations

from typing import get_args

from prunebench.plugin.host import HOOKS
from prunebench.plugin.kinds import KINDS
from prunebench.plugin.registry import Kind, PluginEntry, Registry


def test_every_kind_has_rules_and_a_place_in_the_registry() -> None:
    assert get_args(Kind) == tuple(KINDS) == tuple(Registry())


def test_every_registering_hook_is_of_one_kind() -> None:
    hooks = [rules.hook for rules in KINDS.values()]
    assert sorted(hooks) == sorted(hook for hook in HOOKS if "_register_" in hook)


def test_entries_are_found_by_kind_and_name() -> None:
    entries = [
        PluginEntry("corpus", "x", "a text", "dist", "1", ""),
        PluginEntry("method", "x", int, "dist", "1", ""),
    ]
    registry = Registry(entries)
    assert registry["method"]["x"] == entries[1]
    assert registry.registered("corpus") == {"x": "a text"}
    assert registry.registered("engine") == {}
    assert registry.entries() == entries[::-1]
