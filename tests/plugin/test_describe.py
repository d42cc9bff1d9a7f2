"""Options are described with type, bounds, default and meaning."""

from __future__ import annotations

from prunebench.plugin.describe import options_of
from prunebench.plugin.host import load_plugins


def test_every_option_of_the_built_in_plugins_has_a_description() -> None:
    registry = load_plugins()
    kinds = (registry["method"], registry["allocation"], registry["recovery"], registry["metric"])
    for entry in (entry for kind in kinds for entry in kind.values()):
        for option in options_of(entry.value.Options):
            assert option.description, f"{entry.name}: {option.name}"


def test_options_have_types_bounds_and_defaults() -> None:
    registry = load_plugins()
    found = {
        option.name: option for option in options_of(registry["method"]["magnitude"].value.Options)
    }
    assert (found["mode"].type, found["mode"].default) == ("clean | reference", "clean")
    assert (found["min_density"].type, found["min_density"].bounds) == ("float", ">= 0, <= 1")
    assert found["min_density"].only_with == "scope: global"
    assert found["mode"].only_with == ""
    lora = {
        option.name: option for option in options_of(registry["recovery"]["lora"].value.Options)
    }
    assert (lora["max_steps"].type, lora["max_steps"].default) == ("int | null", "null")
    assert lora["targets"].type == "list[text] | null"
