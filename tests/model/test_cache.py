from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir, file_sha256
from prunebench.model.files import atomic_replace, path_lock

OLD = 1_600_000_000


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PRUNEBENCH_CACHE", "~/own")
    assert cache_dir() == Path.home() / "own"
    monkeypatch.delenv("PRUNEBENCH_CACHE")
    assert cache_dir() == tmp_path / "prunebench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "prunebench"


@pytest.fixture
def large(tmp_path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * (2 << 20))
    os.utime(path, (OLD, OLD))
    return path


def test_a_large_file_is_hashed_once_for_one_size_and_time(cache, large):
    first = file_sha256(large)
    assert first == hashlib.sha256(b"a" * (2 << 20)).hexdigest()
    large.write_bytes(b"b" * (2 << 20))
    os.utime(large, (OLD, OLD))
    assert file_sha256(large) == first  # same size, same time: not read again
    os.utime(large, (OLD + 5, OLD + 5))
    assert file_sha256(large) == hashlib.sha256(b"b" * (2 << 20)).hexdigest()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"sha256": 3}', "\x00\xff"])
def test_a_damaged_memo_is_ignored(cache, large, damage):
    right = file_sha256(large)
    (memo,) = (cache / "sha256").iterdir()
    memo.write_text(damage)
    assert file_sha256(large) == right
    assert right in memo.read_text()


def test_a_file_written_just_now_is_not_remembered(cache, large):
    os.utime(large)
    file_sha256(large)
    assert not (cache / "sha256").exists()


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch, large):
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(blocker / "cache"))
    assert file_sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PrunebenchError, match="absent"):
        file_sha256(tmp_path / "absent")


def test_another_process_waits_for_the_lock(tmp_path):
    place = tmp_path / "deep" / "thing"
    code = f"""
from pathlib import Path
from prunebench.model.files import path_lock
input()
print("waiting", flush=True)
with path_lock(Path({str(place)!r})):
    print(Path({str(place)!r}).read_text(), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        with path_lock(place):
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "waiting\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.3)
            place.write_text("done")
        assert child.stdout.readline() == "done\n"


def _write_half(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_what_fails_half_way_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_replace(target) as aside:
        _write_half(aside)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_what_a_killed_process_left_is_removed_by_the_next_holder(tmp_path):
    target = tmp_path / "thing"
    code = f"""
import os
from pathlib import Path
from prunebench.model.files import path_lock
from prunebench.model.files import atomic_replace
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


def test_a_folder_takes_the_place_of_a_full_one(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with atomic_replace(target) as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_is_said_with_the_fix(tmp_path):
    with (
        pytest.raises(PrunebenchError, match="No space left") as caught,
        atomic_replace(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")
    assert "PRUNEBENCH_CACHE" in caught.value.hint
