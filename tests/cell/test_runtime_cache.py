"""Converted models on disk: found again by content, bounded, never half."""

from __future__ import annotations

import os

import pytest

from prunebench.cell import runtime_cache
from prunebench.cell.runtime_cache import Made, converted, key_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runtimes"


def writes(size):
    def make(out):
        (out / "model.bin").write_bytes(b"x" * size)
        return Made("model.bin", 1.5, {"engine": "2.0"})

    return make


def never(_):
    raise AssertionError("it was converted again")


def test_what_was_converted_is_found_again_with_what_it_took():
    first = converted(key_of("a"), writes(10))
    again = converted(key_of("a"), never)
    assert again.path == first.path
    assert again.path.read_bytes() == b"x" * 10
    assert (first.conversion.earlier, again.conversion.earlier) == (False, True)
    assert (again.conversion.seconds, again.conversion.bytes) == (1.5, 10)
    assert again.versions == {"engine": "2.0"}


def test_other_content_has_another_key():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_a_conversion_that_fails_leaves_nothing(folder):
    def fails(out):
        (out / "half").write_bytes(b"x")
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        converted(key_of("a"), fails)
    assert not (folder / key_of("a")).exists()
    assert converted(key_of("a"), writes(1)).conversion.earlier is False


def test_a_damaged_entry_is_converted_again(folder):
    converted(key_of("a"), writes(10))
    (folder / key_of("a") / "conversion.json").write_text("{")
    assert converted(key_of("a"), writes(20)).conversion.bytes == 20


def test_what_was_not_used_for_long_makes_room(folder, monkeypatch):
    monkeypatch.setattr(runtime_cache, "LIMIT_BYTES", 2500)
    for name, age in (("old", 9000), ("older", 10_000), ("in use", 10)):
        converted(key_of(name), writes(1000))
        used = folder.stat().st_mtime - age
        os.utime(folder / key_of(name), (used, used))
    converted(key_of("new"), writes(1000))
    left = {name for name in ("old", "older", "in use", "new") if (folder / key_of(name)).exists()}
    assert left == {"in use", "new"}


def test_what_a_killed_cell_left_is_removed_after_a_day(folder):
    converted(key_of("a"), writes(1))
    for name, age in ((".tmp-model-old", 100_000), (".tmp-model-new", 1000)):
        (folder / name).mkdir()
        used = folder.stat().st_mtime - age
        os.utime(folder / name, (used, used))
    converted(key_of("b"), writes(1))
    assert not (folder / ".tmp-model-old").exists()
    assert (folder / ".tmp-model-new").exists()
