from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.hub import require_hub
from tiny import tiny_checkpoint

COMMIT = "c0ffee" * 6 + "c0ff"
REF = ModelRef(name="x", kind="hub", location="org/tiny")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "hub"


def test_the_error_for_an_unreachable_hub_names_it_and_the_offline_choices(
    hub_cache, closed_port, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(
        PrunebenchError, match=f"'org/tiny'.*cannot reach the hub at http://127.0.0.1:{closed_port}"
    ) as caught:
        fetch_checkpoint(REF)
    for choice in ("folder", ".gguf", "smollm2-135m-instruct"):
        assert choice in caught.value.hint


def test_a_hub_that_does_not_answer_is_given_up(hub_cache, closed_port, monkeypatch):
    monkeypatch.setattr("prunebench.model.hub._PROBE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(PrunebenchError, match="cannot reach the hub"):
            require_hub("corpus 'x'", hint="h")


@pytest.mark.faults
def test_an_unreachable_or_silent_hub_is_reported_within_seconds(
    hub_cache, closed_port, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (closed_port, silent.getsockname()[1]):
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
            started = time.perf_counter()
            with pytest.raises(PrunebenchError, match="cannot reach the hub"):
                require_hub("corpus 'x'", hint="h")
            assert time.perf_counter() - started < 8


def test_offline_mode_opens_no_connection(hub_cache, connections, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PrunebenchError, match="HF_HUB_OFFLINE is set"):
        fetch_checkpoint(REF)
    assert not connections


@dataclass
class FakeHub:
    """Serves the repository org/tiny as the hub does, and notes which files were downloaded."""

    files: dict[str, bytes]
    taken: list[str] = field(default_factory=list)
    url: str = ""


def handler(hub: FakeHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if self.path.startswith("/api/models/org/tiny/revision/"):
                siblings = [{"rfilename": name} for name in hub.files]
                self.answer_json({"id": "org/tiny", "sha": COMMIT, "siblings": siblings})
            elif self.path.startswith(f"/api/models/org/tiny/tree/{COMMIT}"):
                self.answer_json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                        for name, data in hub.files.items()
                    ]
                )
            elif parts[:3] == ["org", "tiny", "resolve"]:
                name = "/".join(parts[4:])
                if self.command == "GET":
                    hub.taken.append(name)
                self.answer(hub.files[name])
            else:
                self.answer(b"{}", 404)

        def answer_json(self, content: object) -> None:
            self.answer(json.dumps(content).encode())

        def answer(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


@pytest.fixture
def fake_hub(tmp_path, hub_cache, closed_port, monkeypatch) -> Iterator[FakeHub]:
    folder = tiny_checkpoint(tmp_path / "origin")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    hub = FakeHub({str(path.relative_to(folder)): path.read_bytes() for path in files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_once_without_pickle_or_code(fake_hub, hub_cache, monkeypatch, capfd):
    capfd.readouterr()
    folder = fetch_checkpoint(REF)
    assert capfd.readouterr().err == ""
    wanted = {
        name for name in fake_hub.files if "/" not in name and not name.endswith((".bin", ".py"))
    }
    assert set(fake_hub.taken) == wanted == {path.name for path in folder.iterdir()}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # only the cache is left
    assert fetch_checkpoint(REF) == folder


def test_a_partly_cached_model_is_completed(fake_hub, hub_cache):
    (fetch_checkpoint(REF) / "model.safetensors").unlink()
    assert (fetch_checkpoint(REF) / "model.safetensors").is_file()


def test_a_repository_with_pickled_weights_only_is_refused(fake_hub, hub_cache):
    del fake_hub.files["model.safetensors"]
    with pytest.raises(PrunebenchError, match=r"'org/tiny'.*no \*\.safetensors") as caught:
        fetch_checkpoint(REF)
    assert "never pickled" in caught.value.hint
    assert "pytorch_model.bin" not in fake_hub.taken


def test_a_model_that_the_hub_does_not_have_is_named(fake_hub, hub_cache):
    with pytest.raises(PrunebenchError, match="model 'org/other' is not on the hub"):
        fetch_checkpoint(ModelRef(name="x", kind="hub", location="org/other"))
    with pytest.raises(PrunebenchError, match="not a Hub id"):
        fetch_checkpoint(ModelRef(name="x", kind="hub", location="org/.."))
