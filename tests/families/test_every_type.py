"""Every causal-LM type of transformers at every level: prints the table and counts.

`PRUNEBENCH_WRITE_FAMILIES=1 tox run -e families` writes what `prunebench families` shows; the table
in plugins/README.md is made of that.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

import families.coupling
import families.depth
import families.experts
import families.stream
import families.training
import families.weights  # noqa: F401 - registers its checks
import prunebench.app
from families.levels import LEVELS, WORKS
from prunebench.app.families import LEVELS as LEVEL_NAMES
from prunebench.app.families import all_levels
from prunebench.testing.any_type import TYPES, tiny_model

DATA = Path(prunebench.app.__file__).parent / "families.json"
WANTED = {"weights": 140, "depth": 100, "blocks": 70, "width": 70, "experts": 45, "reap": 45}
"""How many types have to work at least."""


def outcome(model_type: str, name: str) -> str:
    try:
        return LEVELS[name](model_type)
    except AssertionError as error:
        return f"WRONG: {error}"
    except Exception as error:  # the other types are tried all the same
        return f"CRASH: {type(error).__name__}: {error}".split("\n")[0]


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
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default")  # of transformers' own code, for some types
def test_every_type_works_or_says_why_not() -> None:
    types = buildable()
    found = {each: {name: outcome(each, name) for name in LEVELS} for each in types}
    for each, row in found.items():
        print(f"{each:28}", *(f"{name}: {said}" for name, said in row.items()), sep=" | ")
    counts = {name: Counter(row[name].split(":")[0] for row in found.values()) for name in LEVELS}
    for name, count in counts.items():
        print(f"{name}: {count[WORKS]} of {len(types)} work; {dict(count)}")
    bad = [f"{each}, {name}: {said}" for each, row in found.items() for name, said in row.items()
           if not said.startswith((WORKS, "refused: "))]  # fmt: skip
    assert not bad, bad
    assert len(types) >= 173
    assert all(counts[name][WORKS] >= least for name, least in WANTED.items())
    made = {
        each: {
            name: "" if said == WORKS else said.removeprefix("refused: ")
            for name, said in row.items()
        }
        for each, row in found.items()
    }
    known = all_levels()
    if os.environ.get("PRUNEBENCH_WRITE_FAMILIES"):  # levels without a check here stay as they are
        merged = {each: {**known.get(each, {}), **row} for each, row in made.items()}
        DATA.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
        return
    stale = [
        f"{each}, {name}"
        for each, row in made.items()
        for name, said in row.items()
        if name in LEVEL_NAMES and known.get(each, {}).get(name) != said
    ]
    assert not stale, f"run it again with PRUNEBENCH_WRITE_FAMILIES=1: {stale}"
