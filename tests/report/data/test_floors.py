"""One bandwidth for a device, so that floors of two models can be compared."""

from __future__ import annotations

import pytest

from prunebench_report.data.floors import generation_floors
from prunebench_report.sections import cards, time_breakdown


def measured(record, bandwidth):
    one = record.io.generation[0]
    floor = (one.weight_bytes + one.kv_cache_bytes) / bandwidth
    record.io.generation[0] = one.model_copy(
        update={
            "bandwidth_bytes_per_s": bandwidth,
            "floor_s": floor,
            "utilisation": floor / one.measured_s,
        }
    )
    return record


@pytest.fixture
def records(build):
    """Dense found 28.8 GB/s, wanda 50 and shortgpt 33."""
    chosen = [build.quickstart()[index] for index in (0, 3, 6)]
    return [measured(*pair) for pair in zip(chosen, (28.8e9, 50e9, 33e9), strict=True)]


def test_the_best_bandwidth_of_a_device_counts_for_all_its_cells(build, records):
    for row, record in zip(build.given(records).table, records, strict=True):
        assert row["bandwidth_bytes_per_s"] == 50e9
        one = record.io.generation[0]
        floor = (one.weight_bytes + one.kv_cache_bytes) / 50e9
        assert row["io_floor_s"] == pytest.approx(floor)
        assert row["io_utilisation"] == pytest.approx(floor / one.measured_s)


def test_cards_bars_and_claims_use_it_too(build, records):
    given = build.given(records)
    for card in cards.section(given):
        assert card["floors"][0]["bandwidth"].startswith("50.0 GB/s")
        assert "the best of 3 cells" in card["floors"][0]["bandwidth"]
    (model,) = time_breakdown.section(given)
    assert model["rows"][0]["io"].startswith("I/O floor 10.9 ms")
    assert any("10.9 ms" in claim["evidence"] for claim in model["claims"])


def test_another_machine_and_another_device_have_their_own(records):
    moved = records[1].cell.model_copy(update={"device": "cuda"})
    records[1] = records[1].model_copy(update={"cell": moved, "id": moved.id})
    records[2].provenance["cpu"] = "another"
    found = generation_floors(records)
    bandwidths = [found[record.id][0].bandwidth_bytes_per_s for record in records]
    assert bandwidths == [28.8e9, 50e9, 33e9]
    assert "cells" not in found[records[0].id][0].bandwidth_source


def test_the_records_themselves_stay_as_they_were(build, records):
    before = [record.model_copy(deep=True) for record in records]
    assert build.given(records).table
    assert records == before
