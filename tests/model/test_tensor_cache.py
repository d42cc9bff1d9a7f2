"""Tensors computed from weights are found again, by the weights' values, within a bound."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from prunebench import TensorCache
from prunebench.model import tensor_folder
from prunebench.model.tensor_folder import TensorFolder

WEIGHT = torch.arange(12.0).reshape(3, 4)
VALUE = torch.tensor([1.5, 2.5])


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tensor_folder, "cache_dir", lambda: tmp_path)
    return tmp_path / "sums"


def test_a_tensor_is_found_by_value_shape_and_dtype_of_its_weight() -> None:
    TensorCache("sums").store(WEIGHT, VALUE)
    again = TensorCache("sums")
    assert torch.equal(again.load(WEIGHT.t().contiguous().t()), VALUE)
    for other in (WEIGHT + 1, WEIGHT.reshape(4, 3), WEIGHT.double(), WEIGHT.view(torch.int32)):
        assert again.load(other) is None
    assert TensorCache("products").load(WEIGHT) is None


def test_what_is_not_there_is_computed_once() -> None:
    asked: list[torch.Tensor] = []

    def sums(weight: torch.Tensor) -> torch.Tensor:
        asked.append(weight)
        return weight.sum(1)

    for _ in range(2):
        assert torch.equal(TensorCache("sums").computed(WEIGHT, sums), WEIGHT.sum(1))
    assert len(asked) == 1
    assert torch.equal(TensorCache("sums").load(WEIGHT), WEIGHT.sum(1))


def test_what_was_not_used_for_longest_goes_first(folder: Path) -> None:
    weights = [WEIGHT + number for number in range(6)]
    large = torch.zeros(1000)  # 4 kB and a header
    cache = TensorCache("sums", limit_bytes=1 << 20)
    for weight in weights:
        cache.store(weight, large)
    for age, path in enumerate(sorted(folder.glob("*.npy"))):
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    cache.load(weights[0])  # now the one that was used last
    bounded = TensorCache("sums", limit_bytes=20_000)
    bounded.store(WEIGHT - 1, large)
    left = sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert 0 < left <= 10_000
    assert bounded.load(weights[0]) is not None
    assert bounded.load(WEIGHT - 1) is not None
    assert not list(folder.glob(".tmp*"))


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_no_error(folder: Path) -> None:
    cache = TensorCache("sums")
    cache.store(WEIGHT, VALUE)
    [path] = folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-3])
    assert cache.load(WEIGHT) is None
    path.write_bytes(b"")
    assert cache.load(WEIGHT) is None
    path.unlink()
    folder.rmdir()
    folder.write_text("no folder")
    cache.store(WEIGHT, VALUE)
    assert cache.load(WEIGHT) is None


def test_a_folder_keeps_any_type_and_finds_changed_bytes(folder: Path) -> None:
    kept = TensorFolder("sums", limit_bytes=1 << 20)
    for value in (WEIGHT.bfloat16(), WEIGHT.long(), torch.tensor(1.5), torch.zeros(0, 3)):
        kept.store("a text", value)
        found = kept.load("a text")
        assert found is not None
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(found, value)
    kept.store("a text", WEIGHT)
    [path] = folder.glob("*.npy")
    whole = bytearray(path.read_bytes())
    whole[-12] ^= 1  # within the numbers, where the format notices nothing
    path.write_bytes(whole)
    assert kept.load("a text") is None


def test_too_large_for_the_folder_or_the_disk_is_not_kept_and_remains_of_killed_writers_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (("old", 5000), ("new", 5)):
        (folder / f".tmp-{name}").mkdir(parents=True)
        stamp = time.time() - age
        os.utime(folder / f".tmp-{name}", (stamp, stamp))
    kept = TensorFolder("sums", limit_bytes=10_000)
    kept.store("large", torch.zeros(2000))
    assert kept.load("large") is None
    kept.store("small", WEIGHT)
    assert kept.load("small") is not None
    assert [path.name for path in folder.glob(".tmp-*")] == [".tmp-new"]
    monkeypatch.setattr(tensor_folder, "SPARE_BYTES", 1 << 60)
    kept.store("another", WEIGHT)
    assert kept.load("another") is None
