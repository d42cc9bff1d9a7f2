"""A cell's id changes exactly when the experiment does: run folders on disk depend on that."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from prunebench.plugin.api.options import SparsityOptions
from prunebench.schema import AddedLater
from prunebench.suite.plan import plan

SUITE = """\
name: ids
models: smollm2-135m-instruct
methods:
  - wanda: {sparsity: 0.5}
calibration: {corpus: boolq-passages, windows: 4, length: 16}
quality: {perplexity: {corpus: boolq-passages, windows: 3, length: 10}}
profile: {latency: {prompt: 6, new_tokens: 4, batch_size: 2, min_rounds: 5, min_time_s: 1}}
"""

DENSE_ID, WANDA_ID = "9e043f1bd9eb50ff", "29de34bd71041a18"


def ids(suite, registry):
    return [cell.id for cell in plan(suite, registry).cells]


def test_golden_ids(load, registry):
    """If this fails, finished cells of older runs are run again.

    Then raise PROTOCOL, and say so in the change log.
    """
    assert ids(load(SUITE), registry) == [DENSE_ID, WANDA_ID]


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=other"],
        ["title=Other"],
        ["models.0.name=label"],
        ["limits.time_s=7"],
        ["keep_models=true"],
        ["quality.gate=0.5"],
        ["methods=[{wanda: null}]"],  # 0.5 is the default
        ["methods=[{wanda: {sparsity: 0.50}}]"],
        [
            "calibration={length: 16, sampler: distinct, windows: 4, split: calibration, corpus: boolq-passages}"
        ],
        ["seeds=[0]"],
        ["device=auto"],
    ],
)
def test_changes_that_do_not_affect_the_outcome_keep_the_id(load, registry, overrides):
    assert ids(load(SUITE, *overrides), registry) == [DENSE_ID, WANDA_ID]


def test_order_and_comments_keep_the_id(load, registry):
    lines = SUITE.splitlines(keepends=True)
    text = "# a comment\n" + "".join(lines[4:] + lines[:4])
    assert ids(load(text), registry) == [DENSE_ID, WANDA_ID]
    more = SUITE.replace("  - wanda", "  - random\n  - wanda")
    assert ids(load(more), registry)[2] == WANDA_ID


@pytest.mark.parametrize(
    "override",
    [
        "models.0.dtype=bfloat16",
        "models=org/m",
        "models.0.trust_remote_code=true",
        "quality.perplexity.windows=4",
        "quality.perplexity.length=11",
        "quality.perplexity.split=calibration",
        "quality.perplexity=null",
        "profile.latency.prompt=7",
        "profile.latency.min_rounds=6",
        "profile.latency=null",
        "device=cpu",
        "threads=1",
        "seeds=1",
    ],
)
def test_changes_that_affect_every_outcome_change_every_id(load, registry, override):
    changed = ids(load(SUITE, override), registry)
    assert len(changed) == 2
    assert not {DENSE_ID, WANDA_ID} & set(changed)


@pytest.mark.parametrize(
    "override",
    [
        "methods.wanda.sparsity=0.6",
        "methods.wanda.sparsity=2:4",
        "calibration.windows=5",
        "calibration.length=17",
        "calibration.split=evaluation",
        "calibration.sampler=consecutive",
    ],
)
def test_changes_that_affect_one_method_change_its_id_only(load, registry, override):
    dense, wanda = ids(load(SUITE, override), registry)
    assert dense == DENSE_ID
    assert wanda != WANDA_ID


def test_another_version_of_the_plugin_is_another_experiment(load, registry):
    before = registry["method"]["wanda"]
    registry["method"]["wanda"] = type(before)(**{**vars(before), "version": "2.0"})
    dense, wanda = ids(load(SUITE), registry)
    assert dense == DENSE_ID
    assert wanda != WANDA_ID


def test_a_local_file_is_identified_by_its_content(load, registry, tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "b.txt").write_text("text", encoding="utf-8")
    first = ids(load(SUITE.replace("boolq-passages", "a.txt")), registry)
    assert ids(load(SUITE.replace("boolq-passages", "b.txt")), registry) == first
    (tmp_path / "a.txt").write_text("other", encoding="utf-8")
    assert not set(ids(load(SUITE.replace("boolq-passages", "a.txt")), registry)) & set(first)


def test_an_option_that_came_later_changes_the_id_only_at_other_values(load, registry):
    class Later(SparsityOptions):
        power: Annotated[int, AddedLater()] = 2
        order: Annotated[str | None, AddedLater()] = Field(None, alias="sort")

    class Wanda(registry["method"]["wanda"].value):
        Options = Later

    before = registry["method"]["wanda"]
    registry["method"]["wanda"] = type(before)(**{**vars(before), "value": Wanda})
    suite = load(SUITE)
    assert ids(suite, registry) == [DENSE_ID, WANDA_ID]
    options = plan(suite, registry).cells[1].method.options
    assert options == {"sparsity": 0.5, "power": 2, "sort": None}
    for written in ("power: 2", "sort: null"):
        same = load(SUITE.replace("sparsity: 0.5", f"sparsity: 0.5, {written}"))
        assert ids(same, registry) == [DENSE_ID, WANDA_ID]
    other = [
        ids(load(SUITE.replace("sparsity: 0.5", f"sparsity: 0.5, {written}")), registry)[1]
        for written in ("power: 1", "sort: rows", "power: 1, sort: rows")
    ]
    assert len({WANDA_ID, *other}) == 4
