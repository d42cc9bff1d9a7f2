"""Seconds until a network that is not there is reported, and until a known task is found."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from prunebench.errors import PrunebenchError
from prunebench.measure.quality.task_index import task_index
from prunebench.model.hub import require_hub

pytestmark = pytest.mark.bench


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    took = time.perf_counter() - begun
    print(f"\n{what}: {took:.2f} s")
    assert took < seconds


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with within(8, "no answer"), pytest.raises(PrunebenchError, match="cannot reach the hub"):
            require_hub("corpus 'x'", hint="h")


def test_the_tasks_of_lm_eval_are_known_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    first = task_index()
    with within(0.5, "the index of tasks from the cache"):
        assert task_index() == first
