"""The JSON Schema and the loader say the same of generated suites, apart from names and relations."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from json_schemas import Generator, fits
from prunebench.errors import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.suite import yaml
from prunebench.suite.json_schema import json_schema
from prunebench.suite.load import check_suite
from prunebench.suite.source import Source

REGISTRY = load_plugins()
SCHEMA = json_schema(REGISTRY)
NAMES = {
    **dict.fromkeys(("model", "models"), st.sampled_from(["tiny-llama", "smollm2-135m-instruct"])),
    "corpus": st.sampled_from(["tiny-text", "boolq-passages"]),
    "file": st.just("text.txt"),
    "split": st.sampled_from(["calibration", "evaluation", "train", "test"]),
    "sampler": st.sampled_from(["consecutive", "distinct", "joined-random"]),
    **dict.fromkeys(("task", "tasks"), st.sampled_from(["arc_easy", "hellaswag"])),
    "data": st.just("hub"),
    **dict.fromkeys(
        ("layers", "attention", "mlp", "hidden", "kv_groups", "mlp_channels"),
        st.sampled_from(["0-3,7 of 12", "none of 12", "0", "bits of 8: AQ=="]),
    ),
    "metric": st.just("perplexity"),
    "method": st.sampled_from(["dense", "magnitude"]),
}
"""Names that exist: that others do not, no schema can say."""

BEYOND_A_SCHEMA = [
    # names and files
    r"unknown (corpus|model|sampler|data|protocol)", r"has no split", r"no file ", r"is not there",
    r"is not a (known kind|file)", r"is called '.*' too", r"a model's name is empty",
    r"a revision is for Hub ids only", r"disagree", r"not a valid path",
    r"this suite has no", r"no cell (is|measures)", r"several perplexities fit", r" is each of ",
    r"the sampler '.*' is not for", r"`field` is for", r"holds no examples", r"is a folder",
    r"'[^']*' is not there, no file", r"is no range of layers", r"no method '.*' is registered",
    r"give `.*` beside initial_method", r"does not prune the weights of linears layer by layer",
    r"write a method's name", r"with these options cannot be refined", r"ranks scores in each row",
    # what depends on other keys
    r"looks at no text", r"needs calibration and the suite has none", r"needs text",
    r"takes no allocation", r"has no effect with", r"'corpus' is missing",
    r"give `\w+` or `\w+`, not both", r"is above `learning_rate`", r"needs `val_windows` or `val_share`",
    r"is no set of indices", r"a number appears twice", r"expect.*unknown option",
    r"holds no layer", r"has no layers", r"layers are named", r"draws no number of rows",
    r"write numbers from 0, as a list",
    r"it needs `scope: layer`", r"knows no task", r"`rows` and `windows` both say", r"so 0 < N < M", r"at least one must be kept and one removed", r"give one value for each",
    r"must be less than `", r"has positions for", r"its tokenizer has", r"needs the Python package",
    r"replaces removed layers, and", r"timed at the shapes with batch size 1",
    r"looks at the answers to tasks", r"divides shares, and", r"windows are held out", r"rows share nothing",
]  # fmt: skip
"""What the loader may say of a suite that fits the schema."""
LOADER_REFUSES = (
    "the loader refuses what the schema accepts: say it in the JSON Schema or, if no schema can, "
    "add the reason to BEYOND_A_SCHEMA"
)
SCHEMA_REFUSES = "the loader accepts what the schema refuses"
ROUTINE, MANY = 200, int(os.environ.get("PRUNEBENCH_FUZZ", "3000"))


@st.composite
def suites(draw: Any) -> dict[str, Any]:
    return Generator(SCHEMA, NAMES, draw).value(SCHEMA)


def problems(data: Any, folder: Path) -> list[str]:
    """What the loader says of ``data``, written as YAML."""
    text = json.dumps(data)
    document = yaml.parse(text, "s.yaml")
    assert document.data == data
    locations = {key: f"s.yaml:{line}" for key, line in document.lines.items()}
    try:
        check_suite(Source("s.yaml", folder, text, document.data, locations), REGISTRY)
    except PrunebenchError as error:
        return str(error).splitlines()
    return []


def expressible(found: list[str]) -> list[str]:
    """Those of the problems that a schema could have told."""
    return [one for one in found if not any(re.search(each, one) for each in BEYOND_A_SCHEMA)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, one in inside for found in places(one, (*path, key)))]


ODD = st.sampled_from(
    [None, True, False, 0, -1, 1, 8.0, 0.5, 10**30, "", "x", "2:4", "4:2", [], [[]], {}, {"x": 1}, "8 GB", "0 GB", [None]]
)  # fmt: skip


def mutated(data: dict[str, Any], place: int, kind: str, odd: Any) -> Any:
    """``data`` with one value replaced or removed, or one key added."""
    data = copy.deepcopy(data)
    every = places(data)[1:]
    path = every[place % len(every)]
    above: Any = data
    for key in path[:-1]:
        above = above[key]
    if kind == "replace":
        above[path[-1]] = odd
    elif kind == "remove":
        del above[path[-1]]
    elif isinstance(above, dict):
        above["unheard-of"] = odd
    else:
        above.append(odd)
    return data


def compare(folder: Path, examples: int) -> tuple[int, int]:
    """Counts of suites that the loader took: generated ones, and mutated ones."""
    taken = [0, 0]
    edits = st.tuples(st.integers(0, 9999), st.sampled_from(["replace", "remove", "add"]), ODD)

    @given(suites(), edits)
    @settings(max_examples=examples)
    def attempt(data: dict[str, Any], edit: tuple[int, str, Any]) -> None:
        assert fits(data, SCHEMA, SCHEMA)
        found = problems(data, folder)
        assert not expressible(found), LOADER_REFUSES
        taken[0] += not found
        other = mutated(data, *edit)
        found = problems(other, folder)
        if fits(other, SCHEMA, SCHEMA):
            assert not expressible(found), LOADER_REFUSES
        else:
            assert found, SCHEMA_REFUSES
        taken[1] += not found

    attempt()
    return taken[0], taken[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_generated_suites(folder: Path) -> None:
    generated, _ = compare(folder, ROUTINE)
    assert generated > ROUTINE / 20


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_thousands_of_generated_suites(folder: Path) -> None:
    generated, mutants = compare(folder, MANY)
    assert generated > MANY / 20
    assert mutants > MANY / 200
