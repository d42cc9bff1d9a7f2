"""Latencies with 2:4 kernels: shown, and never in place of the headline."""

from __future__ import annotations

import pytest

from prunebench_report.data.speed import stored_latencies
from prunebench_report.sections import cards, main_table, speed


def test_kernels_are_shown_beside_the_headline_and_not_in_its_place(build):
    records = build.quickstart()
    one = build.with_kernels(records[4], 1.31)
    row = build.given(records).row_by_id[one.id]
    assert row["inter_token_speedup"] == pytest.approx(0.997)
    assert row["sparse24_speedup"] == pytest.approx(1.31)
    assert row["io_utilisation"] > 0.1  # the floor of the weights as stored
    assert "inter_token_speedup_2" not in row
    assert len(stored_latencies(one)) == 1
    assert "with 2:4 kernels 1.31" in speed.measured_speedup(one)


def test_the_report_shows_kernels_if_a_cell_ran_them(build):
    records = build.quickstart()
    build.with_kernels(records[4], 1.31)
    given = build.given(records)
    assert "sparse24_speedup" in [one["key"] for one in main_table.section(given)["columns"]]
    card = next(one for one in cards.section(given) if one["id"] == records[4].id)
    assert any("2:4 kernels" in one["shape"] for one in card["speed"])
    assert dict(card["audit"])["Speed-up measured"].startswith("1.00")


def test_second_copies_of_weights_are_said_on_the_card_of_a_cell_that_held_them(build):
    records = build.quickstart()
    records[4].speed.latency[0].second_copy_bytes = 63_000_000
    shown = [dict(one["speed"][0]["facts"]) for one in cards.section(build.given(records))]
    name = "Second copies of weights"
    assert [facts[name] for facts in shown if name in facts] == ["63.0 MB, in no figure"]
