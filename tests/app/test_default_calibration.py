"""Without a text, `prunebench prune` calibrates as the method was published, if the hub is there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import prunebench
from hub_server import HubServer
from prunebench.app import default_calibration as module
from prunebench.app.default_calibration import with_keys, with_training_text
from prunebench.cli import prunebench as command
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import load_suite
from prunebench.suite.schema import CalibrationEntry
from prunebench_plugins.hub_corpora import C4
from tiny import tiny_checkpoint

PUBLISHED = {
    # arXiv:2301.00774, section 4: 128 segments of 2048 tokens from the first shard of C4; Wanda and
    # OWL take the same.
    ("method", "sparsegpt"): ("papers/sparsegpt", {"corpus": "c4", "windows": 128, "length": 2048}),
    ("method", "wanda"): ("papers/sparsegpt", {"corpus": "c4", "windows": 128, "length": 2048}),
    ("method", "ria"): ("papers/ria", {"corpus": "c4", "windows": 128, "length": 2048}),
    ("method", "dsnot"): ("papers/dsnot", {"corpus": "c4", "windows": 128, "length": 2048}),
    ("method", "flap"): ("papers/flap", {"corpus": "wikitext2", "windows": 1024, "length": 128}),
    ("method", "hywia"): ("papers/hywia", {"corpus": "bookcorpus", "windows": 10, "length": 64}),
    ("allocation", "owl"): (None, {"corpus": "c4", "windows": 128, "length": 2048}),
    # arXiv:2305.11627, section 4.1: 10 samples of 64 tokens (released code).
    ("method", "llm-pruner"): (
        "papers/llm-pruner",
        {"corpus": "bookcorpus", "windows": 10, "length": 64},
    ),
    # arXiv:2406.10594, section 4.1: 256 samples; they are rows (released code).
    ("method", "blockpruner"): (
        "papers/blockpruner",
        {"corpus": "alpaca", "rows": 256, "length": 2048},
    ),
    # arXiv:2403.03853, section 4.1: PG19; windows of 256 tokens (released code).
    ("method", "shortgpt"): ("papers/shortgpt", {"corpus": "pg19", "windows": 512, "length": 256}),
}
OFFLINE = {"corpus": "text.txt", "windows": 4, "length": 16}


@pytest.mark.parametrize(("kind", "name"), PUBLISHED)
def test_the_papers_recipes(kind: str, name: str) -> None:
    suite, expected = PUBLISHED[kind, name]
    registry = load_plugins()
    published = dict(registry[kind][name].value.published_calibration)
    sampler = published.pop("sampler")
    assert published == expected
    entry = CalibrationEntry.model_validate({**published, "sampler": sampler})
    if suite is not None:
        [spec] = {
            one
            for one in [*_calibrations(suite, name), *_calibrations(suite, None)]
            if one.corpus.name == published["corpus"]
        }
        assert (spec.sampler, spec.windows, spec.rows, spec.length) == (
            sampler,
            None if entry.rows else entry.windows[0],
            entry.rows and entry.rows[0],
            entry.length[0],
        )


def _calibrations(suite: str, method: str | None) -> list[Any]:
    from prunebench.suite.plan import plan

    registry = load_plugins()
    return [
        cell.calibration
        for cell in plan(load_suite(suite, registry=registry), registry).cells
        if cell.calibration is not None and method in {None, cell.method.name}
    ]


def test_every_method_that_reads_text_has_a_recipe_or_none_was_published() -> None:
    registry = load_plugins()
    without = {
        entry.name
        for kind in ("method", "allocation")
        for entry in registry[kind].values()
        if entry.distribution == "prunebench"
        and entry.value.needs_calibration
        and entry.value.published_calibration is None
    }
    # Those of the others are not among our corpora.
    assert without == {"budget-search", "imp", "layer-similarity", "minitron", "reap"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=24)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(module, "OFFLINE", OFFLINE)
    return tmp_path


@pytest.fixture
def c4(hub: HubServer) -> HubServer:
    """A hub that has C4, as far as the recipe reads it."""
    rows = [{"text": f"document {n}: " + "the lazy dog and the tall man. " * 20} for n in range(40)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    hub.repository(C4.repository, kind="datasets").pin(C4.revision, {C4.files["train"]: data})
    return hub


def prune(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["prune", "./model", *arguments, "--out=pruned"])


def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("pruned", "pruning.json").read_text())["made_by"]
    return found


def test_the_published_text_is_taken_from_the_hub(folder: Path, c4: HubServer) -> None:
    done = prune("wanda")
    assert done.exit_code == 0, done.output
    text = told()["calibration"]
    assert (text["corpus"], text["sampler"], text["split"]) == ("c4", "c4-gptq", "train")
    assert (text["windows"], text["length"]) == (128, 24)
    why = (
        "as published (arXiv:2306.11695), but length 24, which is all that the model has"
        " positions for"
    )
    assert text["reason"] == why
    assert f"calibrated on c4 train, c4-gptq, 128 windows of 24 tokens: {why}" in done.output
    assert "fetch c4, the published calibration ..." in done.output


def test_keys_that_are_given_change_the_recipe_and_are_named(folder: Path, c4: HubServer) -> None:
    done = prune("sparsegpt", "--calibration=windows=3", "--calibration=length=8")
    assert done.exit_code == 0, done.output
    text = told()["calibration"]
    assert (text["corpus"], text["windows"], text["length"]) == ("c4", 3, 8)
    assert text["reason"] == "as published (arXiv:2301.00774), but windows 3, length 8"


def test_an_allocation_brings_its_text_for_a_method_without(folder: Path, c4: HubServer) -> None:
    done = prune("magnitude", "allocation=owl")
    assert done.exit_code == 0, done.output
    assert told()["calibration"]["reason"].startswith("as published (arXiv:2310.05175)")


def test_streaming_too(folder: Path, c4: HubServer) -> None:
    done = prune("wanda", "--stream")
    assert done.exit_code == 0, done.output
    assert told()["calibration"]["reason"].startswith("as published (arXiv:2306.11695)")
    assert "calibrated on c4 train" in done.output


def test_without_the_hub_another_text_is_taken_and_said(
    folder: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    done = prune("wanda", "--calibration=windows=3")
    assert done.exit_code == 0, done.output
    text = told()["calibration"]
    assert (text["corpus"], text["windows"], text["length"]) == ("text.txt", 3, 16)
    assert text["reason"].startswith("not as published (c4, 128 windows of 2048 tokens): data set")
    assert "cannot reach the hub" in text["reason"]
    assert "calibrated on text.txt all, " in done.output
    assert "cannot reach the hub" in done.output


def test_a_corpus_that_the_hub_refuses_is_no_end_of_pruning(folder: Path, hub: HubServer) -> None:
    hub.repository(C4.repository, kind="datasets", access="gated").pin(C4.revision, {"a": b""})
    done = prune("wanda")
    assert done.exit_code == 0, done.output
    assert told()["calibration"]["corpus"] == "text.txt"


def test_a_text_of_ones_own_needs_no_reason(folder: Path, hub: HubServer) -> None:
    done = prune("wanda", *(f"--calibration={key}={OFFLINE[key]}" for key in OFFLINE))
    assert done.exit_code == 0, done.output
    assert "reason" not in told()["calibration"]
    assert "4 windows of 16 tokens\n" in done.output
    assert not hub.requests


def test_methods_that_read_no_text_ask_nobody(folder: Path, hub: HubServer) -> None:
    done = prune("llm-pruner", "importance=l2")
    assert done.exit_code == 0, done.output
    assert "calibration" not in told()
    assert "calibrated" not in done.output
    assert not hub.requests


def test_a_wrong_option_is_found_before_anything_is_fetched(folder: Path, hub: HubServer) -> None:
    assert "did you mean" in str(prune("wanda", "sparsty=0.5").exception)
    assert not hub.requests


def test_a_method_without_a_recipe_says_so(folder: Path, hub: HubServer) -> None:
    done = prune("imp", "rounds=1", "max_steps=1")
    assert done.exit_code == 0, done.output
    assert told()["calibration"]["reason"] == "'imp' has no published calibration"


def test_in_python_it_is_the_same(folder: Path, c4: HubServer) -> None:
    result = prunebench.prune("./model", "wanda")
    assert result.calibration is not None
    assert result.calibration.startswith(
        "c4 train, c4-gptq, 128 windows of 24 tokens: as published"
    )


def test_plugins_show_names_the_recipe() -> None:
    shown = CliRunner().invoke(command, ["plugins", "show", "blockpruner"]).output
    assert "published on corpus alpaca, sampler joined-rows, rows 256, length 2048" in shown


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"corpus": "a", "sampler": "joined-rows", "rows": 9, "length": 4}),
        ({"windows": 2}, {"corpus": "a", "sampler": "joined-rows", "windows": 2, "length": 4}),
        ({"sampler": "distinct"}, {"corpus": "a", "sampler": "distinct", "length": 4}),
        ({"rows": 5}, {"corpus": "a", "sampler": "joined-rows", "rows": 5, "length": 4}),
    ],
)
def test_an_amount_is_windows_or_rows(given: dict[str, Any], expected: dict[str, Any]) -> None:
    usual = {"corpus": "a", "sampler": "joined-rows", "rows": 9, "length": 4}
    assert with_keys(usual, given) == expected


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        ("lora", {"lora": {"data": OFFLINE}}),
        ({"lora": None}, {"lora": {"data": OFFLINE}}),
        ({"lora": {"rank": 2}}, {"lora": {"data": OFFLINE, "rank": 2}}),
        ({"lora": {"data": {"corpus": "b"}}}, {"lora": {"data": {"corpus": "b"}}}),
        (["lora", "finetune"], ["lora", "finetune"]),
        ({"lora": 3}, {"lora": 3}),
        (None, None),
    ],
)
def test_a_recovery_trains_on_more_than_a_published_calibration(
    recovery: Any, expected: Any
) -> None:
    assert with_training_text({"ratio": 0.5, "recovery": recovery}, OFFLINE) == {
        "ratio": 0.5,
        "recovery": expected,
    }
