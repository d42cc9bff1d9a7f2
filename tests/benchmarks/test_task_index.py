"""Seconds until the tasks of lm-eval are known, once they were looked up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from prunebench.measure.quality.task_index import task_index

pytestmark = pytest.mark.bench


def test_the_index_from_the_cache_takes_less_than_half_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    first = task_index()
    begun = time.perf_counter()
    assert task_index() == first
    took = time.perf_counter() - begun
    figure("index of lm-eval's tasks, from the cache", f"{took:.2f} s", "less than 0.5 s")
    assert took < 0.5
