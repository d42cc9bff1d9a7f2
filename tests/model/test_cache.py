from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.model.cache import cache_dir, file_sha256

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


def test_hashing_works_without_a_writable_cache(tmp_path, monkeypatch, large):
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(blocker / "cache"))
    assert file_sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PrunebenchError, match="absent"):
        file_sha256(tmp_path / "absent")
