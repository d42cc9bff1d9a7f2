"""Whether the hub can be reached is known within seconds."""

from __future__ import annotations

import socket
import time

import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.model import ModelRef
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.hub_access import require_hub

REF = ModelRef(name="x", kind="hub", location="org/tiny")


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


def test_a_hub_that_does_not_answer_is_given_up(hub_cache, monkeypatch):
    monkeypatch.setattr("prunebench.model.hub_access._PROBE_S", 0.2)
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
