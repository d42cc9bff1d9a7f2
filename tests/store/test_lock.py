"""The lock of a run folder: who holds it, when it counts as dead, and what is cleaned up."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.isolation.processes import MARK
from prunebench.store import lock


def write_owner(folder: Path, host: str, mark: str = "") -> Path:
    """A lock file as a killed run on ``host`` leaves it."""
    path = folder / lock.NAME
    path.write_text(
        json.dumps(
            {"pid": 999_999, "host": host, "started": "2026-01-01T00:00:00+00:00", "mark": mark}
        )
    )
    return path


def test_the_error_names_the_process_that_holds_the_folder(tmp_path: Path) -> None:
    with (
        lock.hold(tmp_path, "m"),
        pytest.raises(
            PrunebenchError, match=rf"another run is writing .*process {os.getpid()} on "
        ),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")


def test_a_folder_can_be_held_again_after_it_was_released(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        pass
    with lock.hold(tmp_path) as former:
        assert former is None


def test_a_lock_of_another_machine_holds_while_it_is_renewed(tmp_path: Path) -> None:
    path = write_owner(tmp_path, "elsewhere")
    with (
        pytest.raises(
            PrunebenchError, match=r"process 999999 on elsewhere.*its lock was renewed 0 s ago"
        ),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")
    old = time.time() - 2 * lock.STALE_AFTER_S
    os.utime(path, (old, old))
    with lock.hold(tmp_path) as former:
        assert former is not None
        assert former.host == "elsewhere"


def test_without_kernel_locks_the_age_of_the_lock_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with (
        lock.hold(tmp_path),
        pytest.raises(PrunebenchError, match="its lock was renewed"),
        lock.hold(tmp_path),
    ):
        pytest.fail("both held the folder")
    with lock.hold(tmp_path) as former:
        assert former is None


def test_a_stale_lock_is_taken_over_and_its_processes_are_ended(tmp_path: Path) -> None:
    mark = f"test-{os.getpid()}"
    left = subprocess.Popen(
        ["sleep", "100"], start_new_session=True, env={**os.environ, MARK: mark}
    )
    write_owner(tmp_path, platform.node(), mark)
    with lock.hold(tmp_path) as former:
        assert former is not None
        assert former.pid == 999_999
    assert left.wait() == -9
    assert (tmp_path / lock.NAME).read_text() == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PrunebenchError, match="cannot write to"),
        lock.hold(tmp_path / "file" / "run"),
    ):
        pytest.fail("held")
