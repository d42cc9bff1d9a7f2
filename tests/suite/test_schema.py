"""Sections of a suite file: found by path; sizes of memory; limits are not part of an id."""

from __future__ import annotations

import pytest

from prunebench.errors import PrunebenchError
from prunebench.suite.plan import plan
from prunebench.suite.schema import LatencyEntry, SuiteFile, section_at


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("8 GB", 8_000_000_000),
        ("1.5GiB", 1_610_612_736),
        ("500 MB", 500_000_000),
        ("64 KiB", 65_536),
        ("4096", 4096),
        ("1e9", 1_000_000_000),  # JSON has one kind of number
        ("0.5 B", 1),
    ],
)
def test_memory_is_bytes_or_has_a_unit(load, minimal, given, wanted) -> None:
    assert load(f"{minimal}limits: {{memory: {given}}}\n").memory_limit_bytes == wanted


@pytest.mark.parametrize(
    "given",
    ["8 gigs", "-1", "0", "0 GB", "1.5", ".inf", ".nan", "true", "GB", "[1, 2]", "9999999999 GB"],
)
def test_other_sizes_are_errors_with_their_line(load, minimal, given) -> None:
    with pytest.raises(PrunebenchError, match=r"^s\.yaml:5: limits\.memory: "):
        load(f"{minimal}limits: {{memory: {given}}}\n")


def test_a_limit_changes_no_id(load, registry, minimal) -> None:
    free, limited = (
        plan(load(minimal + more), registry).cells
        for more in ("", "limits: {memory: 2 GB, time_s: 5}\n")
    )
    assert [cell.id for cell in free] == [cell.id for cell in limited]
    assert {cell.memory_limit_bytes for cell in limited} == {2_000_000_000}


def test_sections_are_found_by_path():
    assert section_at(()) is SuiteFile
    assert section_at(("profile", "latency", 3)) is LatencyEntry
    assert section_at(("profile", "latency", 3, "prompt")) is None
    assert section_at(("nowhere", "at", "all")) is None
