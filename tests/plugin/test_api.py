"""The public API is whole, light and documented: names, hooks, options."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import prunebench
import prunebench.testing
from prunebench.plugin import hookspecs as spec
from prunebench.plugin.describe import options_of
from prunebench.plugin.host import load_plugins

HOOKS = [name for name in vars(spec) if name.startswith("prunebench_")]


@pytest.mark.parametrize("package", [prunebench, prunebench.testing], ids=lambda one: one.__name__)
def test_every_exported_name_is_there_and_says_what_it_is(package: ModuleType) -> None:
    assert "Method" in prunebench.__all__
    assert dir(package) == package.__all__ == sorted(set(package.__all__))
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = (value.__doc__ or "").strip()
            # A dataclass without a docstring gets its signature as one.
            assert text, name
            assert not text.startswith(f"{name}("), name


def test_stubs_hold_nothing_but_names_to_export() -> None:
    """What is not an import of one name would be unknown at run time, and type checkers would believe it."""
    for package in (prunebench, prunebench.testing):
        stub = Path(package.__file__).with_suffix(".pyi")
        lines = stub.read_text(encoding="utf-8").splitlines()
        names = [re.fullmatch(r"from [\w.]+ import (\w+) as \1", line)[1] for line in lines if line]
        assert sorted(names) == package.__all__


@pytest.mark.parametrize("name", ["Stream", "annotations"])
def test_a_name_that_is_not_exported_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'prunebench' has no attribute '{name}'"):
        getattr(prunebench, name)


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, prunebench; from prunebench import hookimpl, LinearMethod, Recovery, Allocation, run, prune\n"
        "assert not {'torch', 'transformers', 'pandas', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_hook_says_what_it_is_and_since_when() -> None:
    for name in HOOKS:
        text = inspect.getdoc(getattr(spec, name)) or ""
        assert re.search(r"Added in API \d+\.$", text), name


def test_every_option_of_every_plugin_is_described() -> None:
    registry = load_plugins()
    kinds = (registry["method"], registry["allocation"], registry["recovery"], registry["metric"])
    for entry in (entry for kind in kinds for entry in kind.values()):
        for option in options_of(entry.value.Options):
            assert option.description, f"{entry.name}: {option.name}"


def test_options_are_told_with_types_bounds_and_defaults() -> None:
    registry = load_plugins()
    found = {
        option.name: option for option in options_of(registry["method"]["magnitude"].value.Options)
    }
    assert (found["mode"].type, found["mode"].default) == ("clean | reference", "clean")
    assert (found["min_density"].type, found["min_density"].bounds) == ("float", ">= 0, <= 1")
    lora = {
        option.name: option for option in options_of(registry["recovery"]["lora"].value.Options)
    }
    assert (lora["max_steps"].type, lora["max_steps"].default) == ("int | null", "null")
    assert lora["targets"].type == "list[text] | null"
