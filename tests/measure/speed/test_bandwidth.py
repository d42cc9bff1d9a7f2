from __future__ import annotations

import time

import numpy as np
import torch

from prunebench.measure.speed import bandwidth as module
from prunebench.measure.speed.bandwidth import read_bandwidth


def test_it_reads_about_as_fast_as_numpy_and_says_how(monkeypatch):
    monkeypatch.setattr(module, "HOST_BYTES", 128 << 20)
    found, source = read_bandwidth("cpu")
    values = np.ones(32 << 20, dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        before = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - before)
    assert 0.3 * values.nbytes / best < found < 2e12
    assert "128 MiB of float32" in source
    assert f"{torch.get_num_threads()} threads" in source
    assert "sum" in source or "matrix-vector product" in source


def test_a_machine_that_is_nearly_full_gets_a_smaller_buffer(monkeypatch):
    monkeypatch.setattr(
        module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 300 << 20})
    )
    assert "over 75 MiB" in read_bandwidth("cpu")[1]
