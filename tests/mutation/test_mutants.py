from __future__ import annotations

import ast

import pytest
from mutants import mutants
from run import ROOT, TARGETS

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
