from __future__ import annotations

import sys

import pytest

from planted_memory import planted
from prunebench.measure.devices.process_memory import (
    allocator_peaks,
    max_rss_bytes,
    rss_bytes,
    uss_bytes,
)

MIB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_that_is_held_shows_in_the_resident_and_in_the_unique_set():
    before = rss_bytes(), uss_bytes()
    with planted(200 * MIB):
        during = rss_bytes(), uss_bytes()
    for held, without in zip(during, before, strict=True):
        assert held - without == pytest.approx(200 * MIB, rel=0.05)
    assert during[0] >= during[1]
    assert rss_bytes() < during[0] - 150 * MIB


def test_the_maximum_is_never_below_the_resident_set():
    assert max_rss_bytes() >= 0.99 * rss_bytes() > MIB


def test_without_cuda_the_allocator_has_no_peaks():
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        pytest.skip("CUDA is in use")
    assert allocator_peaks() is None
