from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from mutants import mutants
from run import ROOT
from targets import SPEED_ONLY, TARGETS

from prunebench.plugin.host import load_plugins

SOURCE = '''
LIMIT = 3

def share(values, most=0.5):
    """Two words - not a sum: 1 + 1."""
    total = 0
    for value in values:
        if value < LIMIT and not value > 7:
            total += value
    if total == 0:
        raise ValueError(f"nothing {1 + 1}")
    return max(total, -1) / len(values) * most
'''


def test_every_mutant_differs_in_one_place_and_is_a_program():
    found = mutants(SOURCE, 100)
    assert len(found) == len({one.source for one in found}) >= 12
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for one in found:
        changed = one.source.splitlines()
        assert sum(a != b for a, b in zip(whole, changed, strict=True)) == 1
        ast.parse(one.source)


def test_messages_and_docstrings_are_left_alone():
    for one in mutants(SOURCE, 100):
        assert "nothing {1 + 1}" in one.source
        assert "Two words - not a sum: 1 + 1." in one.source


@pytest.mark.parametrize("count", [1, 5])
def test_they_are_the_same_every_time_and_others_for_another_seed(count):
    assert mutants(SOURCE, count) == mutants(SOURCE, count)
    assert len(mutants(SOURCE, count)) == count
    assert any(mutants(SOURCE, count, seed) != mutants(SOURCE, count) for seed in (1, 2, 3))


def test_every_target_and_its_tests_exist():
    for path, tests in TARGETS.items():
        assert (ROOT / path).is_file()
        for test in tests:
            assert (ROOT / test).is_file()
        for name in SPEED_ONLY.get(path, ()):
            assert f"{name} = " in (ROOT / path).read_text(encoding="utf-8"), name
    assert SPEED_ONLY.keys() <= TARGETS.keys()


def test_every_plugin_that_computes_results_is_a_target():
    registry = load_plugins()
    for kind in ("method", "allocation", "recovery", "metric"):
        for name, entry in registry[kind].items():
            if entry.distribution == "prunebench":
                path = Path(inspect.getfile(entry.value)).relative_to(ROOT)
                assert path.as_posix() in TARGETS, f"{kind} {name}"


def test_constants_that_change_no_result_are_left_alone():
    found = mutants(SOURCE, 100, speed_only={"LIMIT"})
    assert all("LIMIT = 3" in one.source and "value < LIMIT" in one.source for one in found)
    assert len(found) == len(mutants(SOURCE, 100)) - 2


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("x = fit(a, flag=True)", "x = fit(a, flag=False)"),
        ("x = draw(3, generator=g)", "x = draw(3)"),
        ("x.mul_(y)", "None"),
        ("x = y is None", "x = y is not None"),
        ("x = a in b", "x = a not in b"),
        ("x = '\\n\\n'.join(y)", "x = '\\n'.join(y)"),
        ("x = Field(default=False)", "x = Field(default=True)"),
        ("x = list(zip(a, b, strict=True))", None),
        ("x = y.sort(stable=True)", None),
    ],
)
def test_mistakes_of_every_kind(line: str, mistake: str | None):
    found = [one.source for one in mutants(line, 100)]
    assert mistake in found if mistake else not found
