"""The memory of a process, read from outside."""

from __future__ import annotations

import os

from prunebench.engine.memory_limit import used_bytes


def test_memory_is_that_of_the_process_with_its_children() -> None:
    used = used_bytes(os.getpid(), 1 << 60)
    assert used is not None
    assert 10_000_000 < used < 1 << 40
    # pids end at 2**22
    assert used_bytes(2**22 + 1, 1) is None
