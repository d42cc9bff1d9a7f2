"""`expect:` of a suite: published figures are matched to cells, or are errors."""

from __future__ import annotations

import pytest

from prunebench.errors import PrunebenchError
from prunebench.store.run_folder import RunStore
from prunebench.suite.plan import plan

SUITE = """\
name: s
models: {model: smollm2-135m-instruct, name: small}
methods:
  - dense
  - magnitude: {sparsity: 0.5, mode: [clean, reference]}
  - wanda: {sparsity: [0.5, 2:4]}
calibration: {corpus: boolq-passages, windows: 16, length: 512}
quality:
  perplexity: {corpus: boolq-passages, windows: 4, length: 128, protocol: [sparsegpt, disp-llm]}
seeds: [0, 1]
expect:
  - {FIGURE, value: 7.26, source: "Sun et al., 2024"}
"""
WANDA = "model: small, method: wanda, options: {sparsity: 0.5}, protocol: sparsegpt"


@pytest.fixture
def figure(load, registry):
    def figure(text: str, *overrides: str):
        return plan(load(SUITE.replace("FIGURE", text), *overrides), registry)

    return figure


def test_a_figure_finds_its_cells_over_all_seeds(figure):
    planned = figure(WANDA)
    [found] = planned.expect
    assert found.cells == tuple(
        cell.id
        for cell in planned.cells
        if cell.method.name == "wanda" and cell.method.options["sparsity"] == 0.5
    )
    assert len(found.cells) == 2
    assert (found.metric, found.corpus, found.length) == ("perplexity", "boolq-passages", 128)
    assert (found.value, found.tolerance, found.method) == (7.26, 0.02, "wanda sparsity=0.5")


def test_a_figure_changes_no_id_and_is_part_of_the_plan(figure, load, registry, tmp_path):
    planned = figure(WANDA)
    plain = plan(load(SUITE.partition("expect:")[0]), registry)
    assert [cell.id for cell in planned.cells] == [cell.id for cell in plain.cells]
    assert plain.expect == ()
    store = RunStore.create(tmp_path / "run", planned, SUITE)
    assert store.read_plan().expect == planned.expect


def test_dense_can_be_named_although_the_suite_has_it_twice(figure):
    [found] = figure("model: small, method: dense, protocol: disp-llm").expect
    assert len(found.cells) == 1


@pytest.mark.parametrize(
    ("metric", "tolerance"), [("parameters", 0.001), ("removed_share", 0.001), ("speedup", 0.1)]
)
def test_figures_of_the_model_need_no_corpus(metric, tolerance, figure):
    [found] = figure(f"model: small, method: dense, metric: {metric}").expect
    assert (found.metric, found.corpus, found.tolerance) == (metric, None, tolerance)


def test_a_figure_can_be_the_layers_that_are_removed(load, registry, tmp_path):
    text = "model: small, method: wanda, options: {sparsity: 0.5}, metric: removed_layers"
    suite = SUITE.replace("FIGURE", f"{text}, layers: [11, 8, 24]").replace("7.26", "3")
    planned = plan(load(suite), registry)
    [found] = planned.expect
    assert (found.layers, found.value, found.tolerance) == ((11, 8, 24), 3, 0)
    store = RunStore.create(tmp_path / "run", planned, suite)
    assert store.read_plan().expect == planned.expect


def test_the_model_may_be_named_by_its_location(load, registry):
    text = SUITE.replace("FIGURE", WANDA.replace("small", '"models==1:smollm2-135m-instruct.gguf"'))
    assert plan(load(text), registry).expect[0].model == "small"


BAD = {
    "model": (
        "model: smal, method: dense, protocol: disp-llm",
        "s.yaml:12: expect[0].model: this suite has no model 'smal' (did you mean 'small'?)",
    ),
    "method": (
        "model: small, method: wnda, protocol: disp-llm",
        "s.yaml:12: expect[0].method: this suite has no method 'wnda' (did you mean 'wanda'?)",
    ),
    "method of a broken plugin": (
        "model: small, method: sparsegpt, protocol: disp-llm",
        (
            "s.yaml:12: expect[0].method: this suite has no method 'sparsegpt' (the plugin 'sparsegpt' of extra-methods is not "
            "loaded: ImportError: no scipy)"
        ),
    ),
    "options": (
        WANDA.replace("0.5", "0.6"),
        "s.yaml:12: expect[0].options: no cell is 'wanda sparsity=0.6' (did you mean 'wanda sparsity=0.5'?)",
    ),
    "option's name": (
        WANDA.replace("sparsity", "sparsty"),
        "s.yaml:12: expect[0].options.sparsty: unknown option 'sparsty' (did you mean 'sparsity'?)",
    ),
    "recovery": (
        f"{WANDA}, recovery: lora",
        "s.yaml:12: expect[0].options: no cell is 'wanda sparsity=0.5 + lora' (did you mean 'wanda sparsity=0.5'?)",
    ),
    "several cells": (
        "model: small, method: magnitude, options: {sparsity: 0.5}, protocol: disp-llm",
        (
            "s.yaml:12: expect[0].options: 'magnitude sparsity=0.5' is each of 'magnitude sparsity=0.5 mode=clean', "
            "'magnitude sparsity=0.5 mode=reference' (name the options that tell them apart)"
        ),
    ),
    "metric": (
        f"{WANDA}, metric: perplexty",
        "s.yaml:12: expect[0].metric: no cell measures 'perplexty' (did you mean 'perplexity'?)",
    ),
    "corpus": (
        f"{WANDA}, corpus: boolq",
        "s.yaml:12: expect[0].corpus: no cell measures perplexity with corpus boolq (known: boolq-passages)",
    ),
    "length": (
        f"{WANDA}, length: 256",
        "s.yaml:12: expect[0].length: no cell measures perplexity with length 256 (known: 128)",
    ),
    "several perplexities": (
        "model: small, method: dense",
        "s.yaml:12: expect[0].metric: several perplexities fit (name `corpus`, `protocol` or `length`)",
    ),
    "layers of another metric": (
        f"{WANDA}, layers: [3, 4]",
        "s.yaml:12: expect[0].layers: 'perplexity' has no layers (write `metric: removed_layers`)",
    ),
    "number of layers": (
        "model: small, method: dense, metric: removed_layers, layers: [3, 4, 3]",
        "s.yaml:12: expect[0].layers: the value is 7.26, and 2 layers are named (name the layers",
    ),
    "no layers": (
        "model: small, method: dense, metric: removed_layers",
        "s.yaml:12: expect[0].layers: the value is 7.26, and 0 layers are named (name the layers",
    ),
    "key": (
        f"{WANDA}, valeu: 3",
        "s.yaml:12: expect[0].valeu: unknown key 'valeu' (did you mean 'value'?)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_figure_that_matches_no_cell_is_an_error_with_line_and_hint(case, figure):
    text, message = BAD[case]
    with pytest.raises(PrunebenchError) as caught:
        figure(text)
    assert message in str(caught.value)


def test_a_figure_is_left_out_if_the_command_line_removed_its_cell(figure):
    planned = figure(WANDA, "methods=magnitude")
    assert planned.expect == ()
    assert [cell.method.name for cell in planned.cells] == ["dense", "magnitude"]


WITH_TASKS = SUITE.replace(
    "protocol: [sparsegpt, disp-llm]}", "protocol: sparsegpt}\n  tasks: {task: [boolq, piqa]}"
)


@pytest.mark.parametrize("metric", ["boolq", "tasks-mean", "tasks-mean, tasks: [piqa]"])
def test_scores_of_tasks_are_figures_too(metric, load, registry):
    text = WITH_TASKS.replace("FIGURE", f"model: small, method: dense, metric: {metric}")
    [found] = plan(load(text), registry).expect
    assert found.tolerance == 0.02
    assert found.tasks == (("piqa",) if "[piqa]" in metric else ())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("piqaa", "expect[0].metric: no cell measures 'piqaa' (did you mean 'piqa'?)"),
        (
            "tasks-mean, tasks: [boolqq]",
            "expect[0].tasks: no cell measures 'boolqq' (did you mean 'boolq'?)",
        ),
    ],
)
def test_tasks_that_are_not_run_are_errors(metric, message, load):
    with pytest.raises(PrunebenchError) as caught:
        load(WITH_TASKS.replace("FIGURE", f"model: small, method: dense, metric: {metric}"))
    assert message in str(caught.value)
