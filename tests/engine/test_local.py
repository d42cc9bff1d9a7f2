"""What the local engine makes of an end without a record, and how it holds a cell's log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunebench.cell.events import EventReader
from prunebench.engine import cell_log
from prunebench.engine.job import Limits, ProcessExit
from prunebench.engine.lost_cell import cause_of
from prunebench.engine.memory_limit import used_bytes
from prunebench.engine.supervise import Follower


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


def test_a_log_is_cut_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_log, "MAX_BYTES", 1000)
    monkeypatch.setattr(cell_log, "KEPT_BYTES", 10)
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as cell:
        cell.write(b"x" * 990 + b"0123456789A")
        Follower(EventReader(tmp_path / "events"), lambda _: None, log)()
        cell.write(b"more")
    assert log.read_text().endswith("its end:\n123456789Amore")


def test_memory_is_that_of_the_process_with_its_children() -> None:
    used = used_bytes(os.getpid(), 1 << 60)
    assert used is not None
    assert 10_000_000 < used < 1 << 40
    assert used_bytes(2**22 + 1, 1) is None
