"""What identifies a dense model and the way it runs, for what other cells keep of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from prunebench.cell.dense_identity import dense_identity
from prunebench.cell.dense_model import is_dense
from prunebench.experiment.model import ModelRef, Placement


def identity(folder: Path, device: str = "cpu", **model: Any) -> str | None:
    ref = ModelRef(**{"name": "m", "kind": "folder", "location": "/m"} | model)
    cell = SimpleNamespace(model=ref)
    found = dense_identity(SimpleNamespace(cell=cell, folder=folder, device=device))
    return found and found()


def test_files_type_device_and_threads_count_and_the_place_of_the_files_does_not(tmp_path) -> None:
    for name, weights in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(weights)
        (tmp_path / name / "code.py").write_text(name)
    a, b, c = (tmp_path / name for name in "abc")
    usual = identity(a)
    assert identity(b) == usual
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        others = [identity(a)]
    finally:
        torch.set_num_threads(threads)
    others += [identity(c), identity(a, dtype="bfloat16"), identity(a, device="meta")]
    others += [identity(one, trust_remote_code=True) for one in (a, b)]
    assert len({usual, *others}) == 7
    assert identity(a, placement=Placement()) is None


def test_of_the_hub_the_commit_counts_and_code_that_nothing_pins_is_not_shared(tmp_path) -> None:
    first, second = (tmp_path / commit for commit in ("1234", "5678"))  # not read: no such folder
    found = [
        identity(folder, kind="hub", location=name)
        for folder in (first, second)
        for name in ("org/one", "org/two")
    ]
    assert len(set(found)) == 4
    assert identity(first, kind="hub", location="org/one") == found[0]
    assert identity(first, kind="hub", location="org/one", trust_remote_code=True) is None


def test_only_the_method_dense_of_prunebench_without_a_recovery_is_dense() -> None:
    def cell(name: str, distribution: str, recovery: object = None) -> Any:
        method = SimpleNamespace(name=name, distribution=distribution)
        return SimpleNamespace(method=method, recovery=recovery)

    assert is_dense(cell("dense", "prunebench"))
    assert not is_dense(cell("dense", "another"))
    assert not is_dense(cell("magnitude", "prunebench"))
    assert not is_dense(cell("dense", "prunebench", recovery="lora"))
