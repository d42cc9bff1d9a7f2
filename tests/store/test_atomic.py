"""Atomic writes: a reader never sees half a file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.store.atomic import write_atomically
from prunebench.store.run_folder import RunStore

DIES = """
import os, sys
from pathlib import Path
from prunebench.store.atomic import write_atomically
Path.replace = lambda *_: os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), "new")
"""


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "cells" / "0123456789abcdef.json"
    path.parent.mkdir()
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    assert len(list(path.parent.iterdir())) == 2
    # the next run removes the half-written file
    with RunStore(tmp_path).lock():
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch, failing: str
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PrunebenchError, match="No space left on device") as caught:
        write_atomically(path, "new")
    assert "free some space" in caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
    assert path.read_text() == "old"


def test_everybody_may_read_the_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.json", "text", durable=False)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Somebody may keep a report or a record in another place."""
    (tmp_path / "elsewhere").mkdir()
    there = tmp_path / "elsewhere" / "report.html"
    there.write_text("old")
    (tmp_path / "report.html").symlink_to(there)
    write_atomically(tmp_path / "report.html", "new")
    assert (tmp_path / "report.html").readlink() == there
    assert there.read_text() == "new"


def test_hidden_files_of_the_user_stay_in_a_run_folder(tmp_path: Path) -> None:
    names = [".notes.json.bak", ".plan.json.mine", ".vscode.json.abcdefgh", ".plan.json"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".plan.json.a1_b2c3d").touch()
    with RunStore(tmp_path).lock():
        assert {path.name for path in tmp_path.iterdir()} == {*names, ".lock"}
