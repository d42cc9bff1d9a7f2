"""Why a cell ended without a record, as its exit code and the kernel tell it."""

from __future__ import annotations

import pytest

from prunebench.engine.job import Limits, ProcessExit
from prunebench.engine.lost_cell import cause_of


@pytest.mark.parametrize(
    ("ended", "kernel_killed", "status", "kind"),
    [
        (ProcessExit(-9), True, "out-of-memory", "SIGKILL"),
        (ProcessExit(-9), False, "failed", "SIGKILL"),
        (ProcessExit(-9, "time"), False, "timeout", "timeout"),
        (ProcessExit(-9, "memory", 3_000_000_000), False, "out-of-memory", "memory limit"),
        (ProcessExit(-40), False, "failed", "signal 40"),
        (ProcessExit(4), True, "failed", "exit"),
    ],
)
def test_the_cause_of_an_end_without_a_record(
    ended: ProcessExit, kernel_killed: bool, status: str, kind: str
) -> None:
    lost = cause_of(ended, Limits(5.0, 2_000_000_000), kernel_killed=kernel_killed)
    assert (lost.status, lost.kind) == (status, kind)
