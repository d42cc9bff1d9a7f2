"""The suites that come with prunebench: sound, planned without a network, found by name."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import prunebench
from prunebench.errors import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import load_suite
from prunebench.suite.plan import plan
from prunebench.suite.source import read, shipped

PAPERS = {
    "alphapruning",
    "besa",
    "laco",
    "shortened-llama",
    "sleb",
    "blockpruner",
    "disp-llm",
    "dsnot",
    "ecoflap",
    "flap",
    "minitron",
    "llm-pruner",
    "llm-streamline",
    "owl",
    "reap",
    "hywia",
    "ria",
    "shortgpt",
    "slicegpt",
    "sparsegpt",
    "wanda",
}

WITHOUT_FIGURES = {"alphapruning", "ecoflap"}
"""Their repositories have no table of language models: the figures are those of other methods."""


@pytest.fixture(scope="module")
def registry():
    return load_plugins()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a plan opens no connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", list(shipped()))
@pytest.mark.usefixtures("no_network")
def test_a_shipped_suite_is_planned_without_a_network(name, registry):
    suite = load_suite(name, registry=registry)
    planned = plan(suite, registry)
    assert planned.cells[0].method.name == "dense"
    assert len({cell.id for cell in planned.cells}) == len(planned.cells)
    assert suite.text.startswith("#")  # says what it is for and what it needs


def test_every_paper_has_a_suite_with_its_figures(registry):
    assert {name.partition("/")[2] for name in shipped() if name.startswith("papers/")} == PAPERS
    for name in PAPERS:
        suite = load_suite(f"papers/{name}", registry=registry)
        planned = plan(suite, registry)
        assert suite.name == f"papers-{name}"
        assert any(figure.method == "dense" for figure in planned.expect)
        own = [
            figure
            for figure in planned.expect
            if name == figure.method.split()[0] or f"allocation={name}" in figure.method.split()
        ]
        assert own or name in WITHOUT_FIGURES
        assert all(len(figure.cells) == 1 for figure in planned.expect)
        assert len(planned.expect) == len(read(f"papers/{name}").data["expect"])
        assert re.search(r"arXiv:\d{4}\.\d{5}", suite.text)
        assert "Known to differ" in " ".join(suite.text.replace("#", " ").split())
        assert "GPU" in suite.text


def test_llm_pruner_s_lora_is_trained_as_released(registry):
    suite = load_suite("papers/llm-pruner", registry=registry)
    [ref, *others] = [one.recovery for one in suite.treatments if one.recovery is not None]
    assert [ref] == others
    options = registry["recovery"]["lora"].value.Options.model_validate(ref.options)
    trained = ref.data.windows - options.held_out(ref.data.windows)
    assert (trained, options.steps(trained)) == (49_760, 1_556)
    assert (options.rank, options.alpha, options.dropout) == (8, 16, 0.05)
    assert (options.learning_rate, options.batch_size, options.warmup_steps) == (1e-4, 64, 100)
    assert options.rate(99, 1_556) == 1e-4  # 100 steps of warm-up are less than a tenth
    assert (ref.data.prompt, ref.data.loss_on, ref.data.length) == ("alpaca", "answer", 256)
    assert ref.data.corpus.name == "alpaca-cleaned"


def test_the_standard_suite_times_all_shapes_with_three_seeds(registry):
    suite = load_suite("standard", registry=registry)
    assert {shape.batch_size for shape in suite.latency} == {1, 8, 32}
    assert {shape.prompt for shape in suite.latency} == {128, 2048}
    assert len(suite.seeds) == 3
    assert {spec.corpus.name for spec in suite.perplexity} == {"wikitext2", "c4"}
    assert len(suite.tasks) == 7
    sparsities = {str(one.options.get("sparsity")) for one in suite.methods}
    assert {"0.2", "0.5", "2:4"} <= sparsities


def test_a_misspelt_name_in_a_folder_gets_the_nearest_name():
    with pytest.raises(PrunebenchError, match="no suite 'papers/wnda'") as caught:
        read("papers/wnda")
    assert caught.value.hint == "did you mean 'papers/wanda'?"


def test_problems_name_the_suite_with_its_folder():
    assert read("papers/wanda").locations["name",].startswith("papers/wanda.yaml:")


def test_with_another_model_the_papers_figures_are_left_out(registry):
    suite = load_suite("papers/wanda", registry=registry, overrides=["models=tiny-llama"])
    assert suite.expect == ()
    assert len(plan(suite, registry).cells) == 10


def test_a_users_own_file_in_a_folder_called_papers_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("papers").mkdir()
    Path("papers/mine.yaml").write_text("name: mine\n")
    assert read("papers/mine.yaml").data == {"name": "mine"}


def test_the_shipped_suites_are_listed():
    result = CliRunner().invoke(prunebench, ["suites", "--json"])
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in json.loads(result.output)] == list(shipped())
    text = CliRunner().invoke(prunebench, ["suites"]).output
    assert "papers/wanda" in text
    assert "Smoke test" in text
