"""The garbage collector is kept out of a block, and is as it was afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import report_builder
from prunebench.isolation.garbage import no_collection
from prunebench.store import run_folder
from prunebench_report import load, write_page
from prunebench_report.output import view


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    before = gc.isenabled()
    gc.enable()
    yield
    if not before:
        gc.disable()


def test_it_runs_again_after_the_block() -> None:
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_runs_again_after_an_error() -> None:
    with pytest.raises(KeyError), no_collection():
        raise KeyError
    assert gc.isenabled()


def test_it_stays_off_if_it_was() -> None:
    gc.disable()
    with no_collection():
        pass
    assert not gc.isenabled()


def test_reading_records_and_making_a_report_are_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[bool]] = {"read": [], "page": []}

    def watched(module: object, name: str, what: str) -> None:
        plain = getattr(module, name)

        def call(*given: object, **named: object) -> object:
            seen[what].append(gc.isenabled())
            return plain(*given, **named)

        monkeypatch.setattr(module, name, call)

    watched(run_folder, "from_json", "read")
    watched(view, "view", "page")
    folder = tmp_path / "run"
    records = report_builder.quickstart()
    report_builder.store(folder, records)
    write_page(load(folder), tmp_path / "report.html")
    assert seen == {"read": [False] * len(records), "page": [False]}
    assert gc.isenabled()


def test_what_the_block_made_is_not_walked_through_when_it_ends() -> None:
    seen: list[int] = []

    def see(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    with no_collection():
        made = [[number] for number in range(200_000)]
        gc.callbacks.append(see)
    more = [[number] for number in range(100)]  # fewer than start a collection by themselves
    gc.callbacks.remove(see)
    assert len(made) > len(more)
    assert not seen
