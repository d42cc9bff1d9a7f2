"""Every causal-LM type of transformers at every level: prints the table and counts.

`PRUNEBENCH_WRITE_FAMILIES=1 tox run -e families` writes what `prunebench families` shows; the table
in plugins/README.md is made of that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import prunebench.app
from families.every_level import Row, row
from families.levels import LEVELS, WORKS
from prunebench.app.families import LEVELS as LEVEL_NAMES
from prunebench.app.families import all_levels
from prunebench.testing.any_type import TYPES

DATA = Path(prunebench.app.__file__).parent / "families.json"
WANTED = {"weights": 140, "depth": 100, "blocks": 70, "width": 70, "experts": 45, "reap": 45}
"""How many types have to work at least."""
LEAST = 173
"""How many types have to build."""
_BY_NAME = re.compile(r"no causal language model called|is not one of|no family is called")


def _plain(said: str) -> str:
    """Without numbers: another processor rounds another way."""
    return re.sub(r"\d[\d.e-]*", "#", said)


def tried(types: Sequence[str]) -> dict[str, Row]:
    """The rows of all types that build. They are tried side by side, and printed as they come."""
    found: dict[str, Row] = {}
    jobs = int(os.environ.get("PRUNEBENCH_JOBS") or os.cpu_count() or 1)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for model_type, one in zip(types, pool.map(row, types), strict=True):
            if isinstance(one, str):
                print(f"{model_type:28} | {one}", flush=True)
                continue
            found[model_type] = one
            said = (f"{name}: {text}" for name, text in one.items())
            print(f"{model_type:28}", *said, sep=" | ", flush=True)
    return found


def figures(found: dict[str, Row]) -> dict[str, int]:
    """What the table of wanted numbers counts."""
    texts = [text for one in found.values() for text in one.values()]
    working = {name: sum(one[name] == WORKS for one in found.values()) for name in LEVELS}
    return working | {
        "wrong silently": sum(text.startswith("WRONG") for text in texts),
        "crashed": sum(text.startswith("CRASH") for text in texts),
        "refused only by name": sum(bool(_BY_NAME.search(text)) for text in texts),
    }


@pytest.mark.families
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("default")  # of transformers' own code, for some types
def test_every_type_works_or_says_why_not() -> None:
    found = tried(TYPES)
    counted = figures(found)
    print(f"\n{'level':22} {'of ' + str(len(found)):>7} wanted")
    for name, number in counted.items():
        wanted = f"at least {WANTED[name]}" if name in WANTED else "" if name in LEVELS else "0"
        print(f"{name:22} {number:7} {wanted}")
    bad = [f"{each}, {name}: {said}" for each, one in found.items() for name, said in one.items()
           if not said.startswith((WORKS, "refused: "))]  # fmt: skip
    assert not bad, bad
    assert len(found) >= LEAST
    assert all(counted[name] >= least for name, least in WANTED.items())
    assert not any(counted[name] for name in counted if name not in LEVELS)
    made = {
        each: {
            name: "" if said == WORKS else said.removeprefix("refused: ")
            for name, said in one.items()
            if name in LEVEL_NAMES
        }
        for each, one in found.items()
    }
    if os.environ.get("PRUNEBENCH_WRITE_FAMILIES"):
        DATA.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    stale = [
        f"{each}, {name}"
        for each, one in made.items()
        for name, said in one.items()
        if _plain(all_levels().get(each, {}).get(name, "not tried")) != _plain(said)
    ]
    assert not stale, f"run it again with PRUNEBENCH_WRITE_FAMILIES=1: {stale}"
    assert set(all_levels()) == set(made)
