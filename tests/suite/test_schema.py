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


@pytest.mark.parametrize(
    ("written", "changes"),
    [
        ("{0: 20 GB, cpu: 60 GB}", ()),
        ('{"0": 20 GB, "cpu": 60 GB}', ()),
        ("{cpu: 60 GB}", ("models.0.max_memory.0=20 GB",)),
        ("{}", ("models.smollm2-135m-instruct.max_memory={0: 20 GB, cpu: 60e9}",)),
        ("null", ("models.0.max_memory.0=20 GB", "models.0.max_memory.cpu=60 GB")),
    ],
)
def test_the_memory_of_a_gpu_has_its_number_as_key(load, written, changes) -> None:
    text = (
        "name: mini\n"
        f"models: [{{model: smollm2-135m-instruct, device_map: auto, max_memory: {written}}}]\n"
        "methods: magnitude\n"
    )
    [model] = load(text, *changes).models
    assert model.placement.max_memory == (("0", 20_000_000_000), ("cpu", 60_000_000_000))


@pytest.mark.parametrize("key", ["gpu", "-1", "01", "cuda:0", "disk", "''", "1.5"])
def test_other_devices_are_errors(load, key) -> None:
    with pytest.raises(PrunebenchError, match=r"^s\.yaml:2: models\[0\]\.max_memory"):
        load(
            "name: mini\n"
            f"models: [{{model: smollm2-135m-instruct, device_map: auto, max_memory: {{{key}: 1}}}}]\n"
            "methods: magnitude\n"
        )


NUMBERS = {
    "seeds": "{}",
    "threads": "{}",
    "gpus": "{}",
    "calibration": "{{corpus: boolq-passages, windows: {}}}",
    "calibration ": "{{corpus: boolq-passages, length: {}}}",
    "quality": "{{gate: {}}}",
    "quality ": "{{perplexity: {{corpus: boolq-passages, windows: {}}}}}",
    "quality  ": "{{perplexity: {{corpus: boolq-passages, length: {}}}}}",
    "profile": "{{latency: {{prompt: {}}}}}",
    "profile ": "{{latency: {{new_tokens: {}}}}}",
    "profile  ": "{{latency: {{batch_size: {}}}}}",
    "profile   ": "{{latency: {{min_rounds: {}}}}}",
    "profile    ": "{{latency: {{min_time_s: {}}}}}",
    "limits": "{{time_s: {}}}",
    "limits ": "{{memory: {}}}",
}


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "-1", "1" + 30 * "0", "true", "1e30"])
@pytest.mark.parametrize("key", NUMBERS)
def test_no_key_takes_such_a_number(load, minimal, key, number) -> None:
    with pytest.raises(PrunebenchError, match=r"^s\.yaml:5: "):
        load(f"{minimal}{key.strip()}: {NUMBERS[key].format(number)}\n")
