"""Cells of a suite: the grid, its selection, and the estimate of their work."""

from __future__ import annotations

import hashlib

import pytest

from prunebench.errors import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.suite.estimate import Estimate, estimate, total
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan, select

GRID = """\
name: grid
models: [smollm2-135m-instruct, {model: org/other, name: other}]
methods:
  - magnitude: {sparsity: [0.5, 2:4]}
  - random
  - wanda
calibration: {corpus: boolq-passages, windows: [4, 8], length: 16}
seeds: [1, 2]
"""


def labels(cells):
    return [cell.label for cell in cells]


def test_the_quickstart_has_eight_cells_in_order():
    registry = load_plugins()
    cells = plan(load_suite("quickstart", registry=registry), registry).cells
    assert labels(cells) == [
        "dense",
        "random sparsity=0.5",
        "magnitude sparsity=0.5",
        "wanda sparsity=0.5",
        "sparsegpt sparsity=2:4",
        "shortgpt ratio=0.1",
        "blockpruner count=2",
        "llm-pruner ratio=0.25 + lora batch_size=2 learning_rate=0.001",
    ]
    windows = [
        cell.calibration and (cell.calibration.windows, cell.calibration.length) for cell in cells
    ]
    assert windows == [None, None, None, (4, 384), (4, 384), (4, 384), (1, 160), (10, 64)]


def test_the_grid_goes_model_by_model_dense_first_with_seeds_if_they_matter(load, registry):
    planned = plan(load(GRID), registry)
    one_model = [
        ("dense", None, 1),
        ("magnitude sparsity=0.5", None, 1),
        ("magnitude sparsity=2:4", None, 1),
        ("random", None, 1),
        ("random", None, 2),
        ("wanda", 4, 1),
        ("wanda", 4, 2),
        ("wanda", 8, 1),
        ("wanda", 8, 2),
    ]
    found = [
        (cell.label, cell.calibration and cell.calibration.windows, cell.seed)
        for cell in planned.cells
    ]
    assert found == one_model * 2
    assert [cell.model.name for cell in planned.cells] == ["smollm2-135m-instruct"] * 9 + [
        "other"
    ] * 9
    assert len({cell.id for cell in planned.cells}) == 18


@pytest.mark.parametrize(("sampler", "seeds"), [("distinct", [1, 2]), ("consecutive", [1])])
def test_there_is_one_seed_if_the_calibration_is_the_same_for_all(load, registry, sampler, seeds):
    suite = load(GRID.replace("length: 16", f"length: 16, sampler: {sampler}"))
    cells = select(plan(suite, registry).cells, only=["wanda"])
    four = [
        cell
        for cell in cells
        if cell.calibration and cell.calibration.windows == 4 and cell.model.name == "other"
    ]
    assert [cell.seed for cell in four] == seeds


def test_equal_experiments_are_planned_once(load, registry):
    text = GRID.replace(
        "- random", "- magnitude\n  - magnitude: {mode: clean}\n  - dense\n  - random"
    )
    cells = select(plan(load(text), registry).cells, only=["magnitude"])
    assert labels(cells)[:3] == ["dense", "magnitude sparsity=0.5", "magnitude sparsity=2:4"]
    assert len(cells) == 6


def test_the_plan_has_the_name_of_the_suite_and_the_hash_of_its_text(load, registry):
    suite = load(GRID + "title: The grid\nquality: {gate: 0.8}\n")
    planned = plan(suite, registry)
    assert (planned.suite, planned.title, planned.gate) == ("grid", "The grid", 0.8)
    assert planned.suite_sha256 == hashlib.sha256(suite.text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        (["random"], [], ["dense", "random", "random"]),
        (["magnitude*2:4*"], [], ["dense", "magnitude sparsity=2:4"]),
        (
            ["magnitude*", "random"],
            ["*2:4"],
            ["dense", "magnitude sparsity=0.5", "random", "random"],
        ),
        (["random"], ["dense"], ["random", "random"]),
        ([], ["wanda", "magnitude"], ["dense", "random", "random"]),
        (["dense"], [], ["dense"]),
    ],
)
def test_selection(load, registry, only, skip, expected):
    cells = select(plan(load(GRID), registry).cells, only, [*skip, "other"])
    assert labels(cells) == expected


def test_selection_by_id_and_by_model(load, registry):
    cells = plan(load(GRID), registry).cells
    by_id = select(cells, only=[cells[-1].id[:8]])
    assert [(cell.model.name, cell.label) for cell in by_id] == [
        ("other", "dense"),
        ("other", "wanda"),
    ]
    assert {cell.model.name for cell in select(cells, only=["oth*"])} == {"other"}


@pytest.mark.parametrize(("option", "pattern"), [("--only", "wnda"), ("--skip", "wnda")])
def test_a_pattern_without_a_match_is_an_error(load, registry, option, pattern):
    kind = {"only": [pattern]} if option == "--only" else {"skip": [pattern]}
    with pytest.raises(PrunebenchError) as caught:
        select(plan(load(GRID), registry).cells, **kind)
    assert str(caught.value) == f"{option} wnda: no cell matches (did you mean 'wanda'?)"


def test_nothing_left_is_an_error(load, registry):
    with pytest.raises(PrunebenchError, match="leave no cell"):
        select(plan(load(GRID), registry).cells, skip=["*"])


def test_estimate_counts_every_token(load, registry):
    suite = load(
        GRID
        + "quality: {perplexity: {corpus: boolq-passages, windows: 3, length: 10}}\n"
        + "profile: {latency: {prompt: 6, new_tokens: 4, batch_size: 2, min_rounds: 5, min_time_s: 0}}\n"
    )
    work = {}
    for cell in plan(suite, registry).cells:
        work.setdefault((cell.model.name, cell.label), estimate(cell, registry))
    quality, timing = 3 * 10, (5 + 1) * 2 * (6 + 4)
    small = "smollm2-135m-instruct"  # the stand-in has 1000 parameters
    assert work[small, "dense"] == Estimate(quality + timing, 2 * 1000 * (quality + timing))
    assert (
        work[small, "random"].tokens == quality + 2 * timing
    )  # dense rounds between the pruned ones
    assert (
        work[small, "wanda"].tokens == 2 * 4 * 16 + quality + 2 * timing
    )  # two passes over calibration
    assert work["other", "dense"] == Estimate(quality + timing, None)
    assert total(work.values()).flop is None
    assert total([Estimate(1, 2), Estimate(3, 4)]) == Estimate(4, 6)


def test_estimate_is_unknown_for_a_whole_corpus(load, registry):
    suite = load(GRID + "quality: {perplexity: {corpus: boolq-passages}}\n")
    assert estimate(plan(suite, registry).cells[0], registry) == Estimate(None, None)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("0.8", (0.8, None)),
        ("{tasks: 0.8}", (0.8, None)),
        ("{tasks: 0.8, generation: 0.9}", (0.8, 0.9)),
        ("{generation: 0.9}", (0.95, 0.9)),
    ],
)
def test_the_gate_may_name_a_share_for_generation(load, gate, expected):
    planned = plan(load(GRID + f"quality: {{gate: {gate}}}\n"), load_plugins())
    assert (planned.gate, planned.generation_gate) == expected


@pytest.mark.parametrize("gate", ["2", "{generation: 0}", "{speed: 0.5}", "yes", "[0.5]"])
def test_a_gate_that_means_nothing_is_refused(load, gate):
    with pytest.raises(PrunebenchError, match="gate"):
        load(GRID + f"quality: {{gate: {gate}}}\n")
