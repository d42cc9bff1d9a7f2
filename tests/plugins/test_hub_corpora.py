"""The corpora of the papers: pinned, complete, and split as in the papers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from prunebench import PrunebenchError
from prunebench.plugin.host import load_plugins
from prunebench.text.corpus import SAMPLER_NAMES
from prunebench_plugins import hub_corpora

CORPORA = {corpus.name: corpus for corpus in hub_corpora.prunebench_register_corpus()}


@pytest.fixture
def cache(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return hub_cache


def put(cache: Path, name: str, split: str, texts: list[str]) -> None:
    """Put rows into the hub's cache, as the file of a split."""
    corpus = CORPORA[name]
    commit = corpus.revision
    repository = cache / f"datasets--{corpus.repository.replace('/', '--')}"
    if commit.startswith("refs/"):
        reference = repository / "refs" / commit
        reference.parent.mkdir(parents=True, exist_ok=True)
        commit = "f" * 40
        reference.write_text(commit)
    path = repository / "snapshots" / commit / corpus.files[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        keys = ("instruction", "input", "output")
        path.write_text(json.dumps([dict.fromkeys(keys, text) for text in texts]))
    else:
        pq.write_table(pa.table({corpus.column: texts}), path)


def test_all_corpora_of_the_papers_are_there() -> None:
    assert {"wikitext2", "ptb", "c4", "alpaca", "alpaca-cleaned", "pg19", "bookcorpus"} <= set(
        load_plugins()["corpus"]
    )


@pytest.mark.parametrize("name", list(CORPORA))
def test_the_defaults_fit(name: str) -> None:
    corpus = CORPORA[name]
    assert corpus.sampler in SAMPLER_NAMES
    assert {corpus.calibration_split, corpus.evaluation_split} <= set(corpus.splits)
    assert corpus.calibration_split != corpus.evaluation_split
    assert len(corpus.revision) == 40 or corpus.revision == "refs/convert/parquet"


def test_rows_keep_their_order(cache: Path) -> None:
    for name in ("wikitext2", "ptb", "pg19"):
        put(cache, name, "test", [f"{name} one", "", f"{name} two"])
        assert list(CORPORA[name].documents("test")) == [f"{name} one", "", f"{name} two"]


def test_alpaca_is_split_into_disjoint_parts(cache: Path) -> None:
    put(cache, "alpaca", "test", [str(number) for number in range(1000)])
    parts = {
        split: list(CORPORA["alpaca"].documents(split)) for split in ("train", "validation", "test")
    }
    assert {split: len(rows) for split, rows in parts.items()} == {
        "train": 800,
        "validation": 100,
        "test": 100,
    }
    assert sorted(int(text) for rows in parts.values() for text in rows) == list(range(1000))
    assert parts["test"] == list(CORPORA["alpaca"].documents("test"))
    assert parts["test"] != sorted(parts["test"], key=int)


def test_bookcorpus_holds_out_its_last_rows(cache: Path) -> None:
    put(cache, "bookcorpus", "train", [str(number) for number in range(100_010)])
    assert list(CORPORA["bookcorpus"].documents("train")) == [str(number) for number in range(10)]
    assert len(CORPORA["bookcorpus"].documents("held-out")) == 100_000


def test_alpaca_cleaned_holds_out_the_rows_that_llm_pruner_holds_out(cache: Path) -> None:
    corpus = CORPORA["alpaca-cleaned"]
    put(cache, corpus.name, "all", [str(number) for number in range(5000)])
    parts = {split: [row["output"] for row in corpus.examples(split)] for split in corpus.splits}
    assert {split: len(rows) for split, rows in parts.items()} == {
        "train": 3000,
        "validation": 2000,
        "all": 5000,
    }
    assert parts["all"] == [str(number) for number in range(5000)]
    assert sorted(parts["train"] + parts["validation"]) == sorted(parts["all"])
    rows = load_dataset("json", data_files=str(next(cache.rglob("*.json"))), split="train")
    released = rows.train_test_split(test_size=2000, shuffle=True, seed=42)
    assert parts["validation"] == released["test"]["output"][:]
    assert corpus.documents("validation")[0] == "\n\n".join([parts["validation"][0]] * 3)


def test_only_instruction_data_gives_examples() -> None:
    assert {name for name, corpus in CORPORA.items() if corpus.holds_examples} == {
        "alpaca",
        "alpaca-cleaned",
    }
    with pytest.raises(PrunebenchError, match=r"'ptb' \(train\) holds no examples"):
        CORPORA["ptb"].examples("train")
