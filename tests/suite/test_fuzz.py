"""Mutated suites, records and plans: they are read, or one line says what is wrong and where.

150 examples each by default, thousands with `tox run -e fuzz`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.errors import PrunebenchError
from prunebench.record.codec import CHECKSUM, checksum, to_json
from prunebench.record.record import Record
from prunebench.store.run_folder import DamagedRecord, RunStore
from prunebench.suite.plan import plan
from small_records import cell, record, store

FULL = """\
name: full
title: A suite with most keys
models:
  - smollm2-135m-instruct
  - {model: smollm2-135m-instruct, name: again, dtype: [float32, bfloat16]}
methods:
  - dense
  - random: {sparsity: [0.3, 0.5]}
  - magnitude: {sparsity: 2:4, mode: clean}
  - wanda: {sparsity: {keep: 1, of: 4}}
  - shortgpt: {ratio: 0.1, calibration: {windows: 4}}
calibration: {corpus: boolq-passages, windows: [16, 32], length: 512}
quality:
  gate: 0.9
  perplexity: {corpus: boolq-passages, windows: 4, length: 128, protocol: [sparsegpt, wanda]}
profile:
  latency: {prompt: [8, 16], new_tokens: 4, batch_size: 1, min_rounds: 2, min_time_s: 0}
seeds: [0, 1]
expect:
  - {model: again float32, method: wanda, value: 20.5, source: nowhere}
device: cpu
threads: 1
limits: {time_s: 60, memory: 8 GB}
"""
WORDS = (
    "null", "true", "-1", "0", "1e400", ".nan", "2:4", "9" * 5000, "[]", "{}", "[[[", "}", "&a [*a]", "*a", "!!python/name:os.system",
    "'", '"', "\t", "- ", "?", "|", "\u0085", "\x00", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "<script>",
    "../../etc/passwd", "/", "~", "name", "methods", "sparsity", "wanda", "seeds: 3\n", "---\n", "# x", ": ", "a/b", "\\",
)  # fmt: skip
EDITS = st.tuples(
    st.integers(0, 10_000),
    st.sampled_from(("cut", "insert", "replace", "swap", "repeat")),
    st.sampled_from(WORDS),
    st.integers(1, 40),
)
ROUTINE, MANY = 150, int(os.environ.get("PRUNEBENCH_FUZZ", "3000"))


def mutated(text: str, edits: list[tuple[int, str, str, int]]) -> str:
    """``text`` after small edits of characters, words and lines."""
    for place, how, word, length in edits:
        at = place % (len(text) + 1)
        end = min(len(text), at + length)
        lines = text.split("\n")
        if how == "cut":
            text = text[:at] + text[end:]
        elif how == "insert":
            text = text[:at] + word + text[at:]
        elif how == "replace":
            token = next(iter(re.finditer(r"[\w.:-]+", text[at:])), None)
            text = (
                text
                if token is None
                else text[: at + token.start()] + word + text[at + token.end() :]
            )
        elif how == "swap":
            one, other = place % len(lines), length % len(lines)
            lines[one], lines[other] = lines[other], lines[one]
            text = "\n".join(lines)
        else:
            lines.insert(length % len(lines), lines[place % len(lines)])
            text = "\n".join(lines)
    return text


def suite_or_lines(load: Any, registry: Any, text: str) -> None:
    """A plan of sound cells, or errors that all name the file and the line."""
    try:
        planned = plan(load(text), registry)
    except PrunebenchError as error:
        for line in str(error).splitlines():
            assert re.match(r"s\.yaml:\d+: ", line), line
    else:
        assert re.fullmatch(r"[a-z0-9-]+", planned.suite), "the name of the run folder"
        assert all(re.fullmatch(r"[0-9a-f]{16}", one.id) for one in planned.cells)


def check_suite(load: Any, registry: Any, examples: int) -> None:
    @given(st.lists(EDITS, min_size=1, max_size=4))
    @settings(max_examples=examples)
    def attempt(edits: list[tuple[int, str, str, int]]) -> None:
        suite_or_lines(load, registry, mutated(FULL, edits))

    attempt()


def json_values() -> st.SearchStrategy[Any]:
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.floats(allow_nan=False)
        | st.sampled_from(WORDS)
    )
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    )


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in ``data``."""
    found = [path] if path else []
    children = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in children:
        found += paths(value, (*path, key))
    return found


def check_records(folder: Path, examples: int) -> None:
    """Edited text, and edited values with a checksum that fits, are read or reported with a reason."""
    one = cell()
    run = store(folder / "run", one)
    text = to_json(record(one))
    path = run.record_path(one.id)
    path.parent.mkdir(exist_ok=True)
    places = paths(json.loads(text))

    def named() -> None:
        found = run.read(one.id)
        assert isinstance(found, Record) or (
            isinstance(found, DamagedRecord) and found.reason and "\n" not in found.reason
        )
        RunStore(run.folder).records()
        assert run.finished(one) == (isinstance(found, Record) and found.status == "ok")

    @given(st.lists(EDITS, min_size=1, max_size=3), st.sampled_from(places), json_values())
    @settings(max_examples=examples)
    def attempt(edits: list[tuple[int, str, str, int]], place: tuple[Any, ...], value: Any) -> None:
        path.write_text(mutated(text, edits), encoding="utf-8", errors="surrogatepass")
        named()
        data = json.loads(text)
        inside = data
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        data.pop(CHECKSUM, None)
        path.write_text(json.dumps({**data, CHECKSUM: checksum(data)}), encoding="utf-8")
        named()

    attempt()


def check_plans(folder: Path, examples: int) -> None:
    """A damaged plan is an error that names the file, and a new run replaces it."""
    one = cell()
    run = store(folder / "run", one)
    text = run.plan_path.read_text()

    @given(st.lists(EDITS, min_size=1, max_size=3))
    @settings(max_examples=examples)
    def attempt(edits: list[tuple[int, str, str, int]]) -> None:
        run.plan_path.write_text(mutated(text, edits), encoding="utf-8", errors="surrogatepass")
        try:
            run.read_plan()
        except PrunebenchError as error:
            assert str(run.plan_path) in error.message
            store(run.folder, one)
            assert run.read_plan().cells == (one,)

    attempt()


def test_mutated_suites_give_a_plan_or_clear_errors(load, registry) -> None:
    check_suite(load, registry, ROUTINE)


def test_mutated_records_are_read_or_reported_as_damaged(tmp_path) -> None:
    check_records(tmp_path, ROUTINE)


def test_mutated_plans_are_read_or_reported(tmp_path) -> None:
    check_plans(tmp_path, 50)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_thousands_of_mutations(load, registry, tmp_path) -> None:
    check_suite(load, registry, MANY)
    check_records(tmp_path / "records", MANY)
    check_plans(tmp_path / "plans", MANY // 3)
    print(
        f"\n{MANY} suites, {2 * MANY} records, {MANY // 3} plans: no traceback, every error names file and line"
    )
