"""The measured memory bandwidth beside numpy's, on the same machine in the same minute."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from prunebench.measure.speed.bandwidth import read_bandwidth

pytestmark = pytest.mark.bench


def test_it_is_about_what_numpy_reads(figure: Any) -> None:
    found, source = read_bandwidth("cpu")
    values = np.ones(128 << 20, dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        before = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - before)
    numpys = values.nbytes / best
    print(source)
    figure("memory bandwidth / numpy's sum", f"{found / numpys:.2f} ({found / 1e9:.1f} GB/s)")
    assert 0.3 * numpys < found < 2e12
