from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.model.files import atomic_replace, path_lock

# Takes the lock without waiting, so that the test needs no clock.
TRY_LOCK = """
import fcntl
import sys
from pathlib import Path
from prunebench.model.files import path_lock
flock = fcntl.flock
fcntl.flock = lambda handle, how: flock(handle, how | fcntl.LOCK_NB)
try:
    with path_lock(Path(sys.argv[1])):
        print("free")
except BlockingIOError:
    print("locked")
"""


def try_lock(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_lock_keeps_other_processes_out_until_it_is_released(tmp_path):
    path = tmp_path / "deep" / "thing"
    with path_lock(path):
        assert try_lock(path) == "locked"
        assert try_lock(path.with_name("other")) == "free"
    assert try_lock(path) == "free"


def _write_half(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_replace(target) as aside:
        _write_half(aside)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_the_next_holder_of_the_lock_removes_what_a_killed_process_left(tmp_path):
    target = tmp_path / "thing"
    code = f"""
import os
from pathlib import Path
from prunebench.model.files import atomic_replace, path_lock
with path_lock(Path({str(target)!r})), atomic_replace(Path({str(target)!r})) as aside:
    aside.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    other = tmp_path / ".tmp-other-1"
    other.mkdir()
    assert len(list(tmp_path.glob(".tmp-thing-*/thing"))) == 1
    with path_lock(target):
        assert {path.name for path in tmp_path.iterdir()} == {"thing.lock", other.name}


def test_a_folder_replaces_one_that_has_files_in_it(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with atomic_replace(target) as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_error_for_a_full_disk_names_the_fix(tmp_path):
    with (
        pytest.raises(PrunebenchError, match="No space left") as caught,
        atomic_replace(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")
    assert "PRUNEBENCH_CACHE" in caught.value.hint
