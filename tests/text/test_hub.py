"""Corpora on the hub: cached ones need no connection, others come from a server on this machine."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_server import HubServer
from prunebench.errors import PrunebenchError
from prunebench.text.hub import HubCorpus

OTHER = {"train": "en/other.json.gz"}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def corpus(**changes) -> HubCorpus:
    values = {
        "name": "news",
        "summary": "",
        "licence": "",
        "repository": "someone/news",
        "revision": REVISION,
        "files": {"train": "en/train.json.gz"},
        "calibration_split": "train",
        "evaluation_split": "train",
        "sampler": "c4-gptq",
    }
    return HubCorpus(**{**values, **changes})


def rows(count: int) -> bytes:
    return gzip.compress(
        "".join(json.dumps({"text": f"news {n}", "id": n}) + "\n" for n in range(count)).encode()
    )


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def cached(hub_cache: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only file of the pinned revision, cached; the hub cannot be reached."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    path = hub_cache / "datasets--someone--news" / "snapshots" / REVISION / "en" / "train.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(rows(20))
    return path


def test_downloaded_once_then_read_without_a_connection(hub: HubServer) -> None:
    hub.repository("someone/news", kind="datasets").pin(REVISION, {"en/train.json.gz": rows(20)})
    first = list(corpus().documents("train"))
    assert first == [f"news {n}" for n in range(20)]
    assert len(hub.taken()) == 1
    hub.requests.clear()
    assert list(corpus().documents("train")) == first
    assert not hub.requests


def test_a_file_or_a_data_set_that_the_hub_does_not_have_is_named(hub: HubServer) -> None:
    hub.repository("someone/news", kind="datasets").pin(REVISION, {"en/train.json.gz": rows(20)})
    with pytest.raises(
        PrunebenchError,
        match=r"data set 'someone/news' has no file en/other\.json\.gz at the revision",
    ):
        corpus(files=OTHER).documents("train")
    with pytest.raises(PrunebenchError, match="data set 'someone/gnus' is not on the hub"):
        corpus(repository="someone/gnus").documents("train")


def test_a_gated_data_set_says_where_its_licence_is(hub: HubServer) -> None:
    news = hub.repository("someone/news", kind="datasets", access="gated")
    news.pin(REVISION, {"en/train.json.gz": rows(20)})
    with pytest.raises(PrunebenchError, match="data set 'someone/news' is gated") as caught:
        corpus().documents("train")
    assert f"{hub.url}/datasets/someone/news, then set HF_TOKEN" in caught.value.hint


def test_a_cut_corpus_goes_on_from_where_it_stopped(hub: HubServer) -> None:
    content = rows(2000)
    hub.repository("someone/news", kind="datasets").pin(REVISION, {"en/train.json.gz": content})
    hub.cut("/cdn/", after=3000)
    assert len(corpus().documents("train")) == 2000
    assert hub.taken()[-1].range == "bytes=3000-"


def test_a_branch_is_read_from_the_commit_that_is_cached(hub: HubServer) -> None:
    news = hub.repository("someone/news", kind="datasets")
    news.commit({"en/train.json.gz": rows(20)}, "refs/convert/parquet")
    moving = corpus(revision="refs/convert/parquet")
    assert len(moving.documents("train")) == 20
    news.commit({"en/train.json.gz": rows(30)}, "refs/convert/parquet")
    assert len(moving.documents("train")) == 20


def test_cached_files_are_read_without_a_connection(cached: Path) -> None:
    documents = corpus().documents("train")
    assert len(documents) == 20
    assert documents[7] == "news 7"
    assert list(corpus(head={"train": 3}).documents("train")) == ["news 0", "news 1", "news 2"]
    assert list(corpus(head={"train": 300}).documents("train")) == list(documents)


def test_the_named_column_is_read_and_must_exist(cached: Path) -> None:
    assert list(corpus(column="id").documents("train"))[:3] == [0, 1, 2]
    with pytest.raises(
        PrunebenchError, match="no column 'body' in someone/news; columns: text, id"
    ):
        corpus(column="body").documents("train")


def test_a_damaged_file_is_named(cached: Path) -> None:
    cached.write_bytes(b"not gzip at all")
    with pytest.raises(PrunebenchError, match=r"cannot read .*train\.json\.gz") as caught:
        corpus().documents("train")
    assert "\n" not in str(caught.value)
    assert "BadGzipFile" not in caught.value.message  # the reason, not its class


def test_deleting_the_file_that_is_named_mends_a_damaged_one(hub: HubServer) -> None:
    hub.repository("someone/news", kind="datasets").pin(REVISION, {"en/train.json.gz": rows(20)})
    assert len(corpus().documents("train")) == 20
    [blob] = (Path(constants.HF_HUB_CACHE) / "datasets--someone--news" / "blobs").iterdir()
    blob.write_bytes(b"damaged meanwhile")
    with pytest.raises(PrunebenchError, match="cannot read") as caught:
        corpus().documents("train")
    named = re.search(r"delete (\S+) and run again", caught.value.hint)
    Path(named[1]).unlink()
    assert len(corpus().documents("train")) == 20


def test_the_error_for_an_unreachable_hub_names_the_offline_choices(cached: Path) -> None:
    with pytest.raises(
        PrunebenchError, match=r"is not cached: cannot reach the hub at http://127\.0\.0\.1:\d+"
    ) as caught:
        corpus(files=OTHER).documents("train")
    for choice in (".jsonl", ".npy", "boolq-passages"):
        assert choice in caught.value.hint


def test_offline_mode_reads_the_cache_only(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(corpus().documents("train")) == 20
    with pytest.raises(PrunebenchError, match=r"not cached.*HF_HUB_OFFLINE is set"):
        corpus(files=OTHER).documents("train")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PrunebenchError, match="need the package datasets") as caught:
        corpus().documents("train")
    assert "pip install 'prunebench[hub]'" in caught.value.hint


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(PrunebenchError, match="did you mean 'train'"):
        corpus().documents("trian")
