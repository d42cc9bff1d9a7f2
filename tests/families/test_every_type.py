"""Every causal-LM type of transformers at every level: prints the table and counts."""

from __future__ import annotations

from collections import Counter

import pytest

import families.depth
import families.weights  # noqa: F401 - registers its checks
from families.levels import LEVELS, WORKS
from families.tiny_configs import TYPES, tiny_model


def outcome(model_type: str, name: str) -> str:
    try:
        return LEVELS[name](model_type)
    except AssertionError as error:
        return f"WRONG: {error}"


def buildable() -> list[str]:
    found = []
    for model_type in TYPES:
        try:
            tiny_model(model_type)
        except Exception as error:
            print(f"{model_type} does not build: {type(error).__name__}: {error}")
        else:
            found.append(model_type)
    return found


@pytest.mark.families
@pytest.mark.timeout(1800)
def test_every_type_works_or_says_why_not() -> None:
    types = buildable()
    found = {each: {name: outcome(each, name) for name in LEVELS} for each in types}
    for each, row in found.items():
        print(f"{each:28}", *(f"{name}: {said}" for name, said in row.items()), sep=" | ")
    for name in LEVELS:
        counts = Counter(row[name].split(":")[0] for row in found.values())
        print(f"{name}: {counts[WORKS]} of {len(types)} work; {dict(counts)}")
    assert not [
        each for each, row in found.items() if any("WRONG" in said for said in row.values())
    ]
    assert len(types) >= 173
