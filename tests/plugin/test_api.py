"""The public API: every name is there and documented, and importing it is cheap."""

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
    """Type checkers would believe anything else, and at run time it would be missing."""
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
        "import sys, prunebench\n"
        "from prunebench import hookimpl, LinearMethod, Recovery, Allocation, run, prune\n"
        "assert not {'torch', 'transformers', 'pandas', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_hook_says_what_it_is_and_since_when() -> None:
    for name in HOOKS:
        text = inspect.getdoc(getattr(spec, name)) or ""
        assert re.search(r"Added in API \d+\.$", text), name
