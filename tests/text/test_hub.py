"""Corpora on the hub: cached ones need no connection, others come from a fake hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and an endpoint that does not answer."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    return tmp_path / "hub"


@pytest.fixture
def cached(cache: Path) -> Path:
    """The only file of the pinned revision, cached."""
    path = cache / "datasets--someone--news" / "snapshots" / REVISION / "en" / "train.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(rows(20))
    return path


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def hub(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that serves one file as the hub does: its address and the requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool = False) -> None:
            asked.append(self.path)
            found = self.path == f"/datasets/someone/news/resolve/{REVISION}/en/train.json.gz"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if body and found:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_downloaded_once_then_read_without_a_connection(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(rows(20)) as (endpoint, asked):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        first = list(corpus().documents("train"))
        assert first == [f"news {n}" for n in range(20)]
        assert any(path.endswith("train.json.gz") for path in asked)
        with pytest.raises(
            PrunebenchError, match=r"cannot download en/other\.json\.gz of someone/news"
        ) as caught:
            corpus(files=OTHER).documents("train")
        assert "boolq-passages" in caught.value.hint
        asked.clear()
        assert list(corpus().documents("train")) == first
        assert not asked


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


def test_the_error_for_an_unreachable_hub_names_the_offline_choices(cached: Path) -> None:
    with pytest.raises(
        PrunebenchError, match=r"not cached: cannot reach the hub at http://127\.0\.0\.1:\d+"
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
