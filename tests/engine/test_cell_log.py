"""The log of a cell: a long one is cut to its end while the cell goes on writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.engine import cell_log


def test_a_long_log_is_cut_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_log, "MAX_BYTES", 1000)
    monkeypatch.setattr(cell_log, "KEPT_BYTES", 10)
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as cell:
        cell.write(b"x" * 990 + b"0123456789A")
        cell_log.shorten(log)
        cell.write(b"more")
    assert log.read_text().endswith("its end:\n123456789Amore")


def test_a_log_that_is_not_there_has_no_tail(tmp_path: Path) -> None:
    cell_log.shorten(tmp_path / "none")
    assert cell_log.tail(tmp_path / "none") == ""
