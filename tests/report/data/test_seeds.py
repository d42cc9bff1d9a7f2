"""Cells that differ only in their seed: one row with mean and deviation, each keeps its links."""

from __future__ import annotations

import re
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench_report import render
from prunebench_report.data.seeds import seed_count, seed_deviation, seed_groups
from prunebench_report.sections import cards, main_table, quality_plots, verdict

VALUES = [26.0, 27.0, 29.5]


@pytest.fixture
def records(build):
    wanda = [
        build.record(build.cell("wanda", seed=seed, sparsity=0.1), value, 1.3 + 0.1 * seed)
        for seed, value in enumerate(VALUES)
    ]
    return [
        build.record(build.cell("dense"), 25.0, 1.0),
        *wanda,
        build.record(build.cell("magnitude"), 90.0, 1.0),
    ]


def test_only_the_seed_may_differ(build):
    cells = [
        build.cell("dense"),
        build.cell("wanda", seed=0, sparsity=0.5),
        build.cell("wanda", seed=0, sparsity=0.6),
        build.cell("wanda", seed=1, sparsity=0.5),
        build.cell("wanda", model="another", seed=1, sparsity=0.5),
    ]
    ids = [cell.id for cell in cells]
    assert seed_groups(cells) == [[ids[0]], [ids[1], ids[3]], [ids[2]], [ids[4]]]


def test_a_group_is_one_row_with_mean_and_sample_deviation(build, records):
    inputs = build.given(records)
    rows = inputs.rows
    assert [row["name"] for row in rows] == ["dense", "wanda sparsity=0.1", "magnitude"]
    assert (rows[0], rows[2]) == (inputs.table[0], inputs.table[4])
    row = rows[1]
    assert row["perplexity"] == pytest.approx(fmean(VALUES))
    assert seed_deviation(row, "perplexity") == pytest.approx(stdev(VALUES))
    assert (row["perplexity_low"], row["perplexity_high"]) == pytest.approx(
        (fmean(VALUES) - stdev(VALUES), fmean(VALUES) + stdev(VALUES))
    )
    recoveries = [100 * 25 / value for value in VALUES]
    assert row["recovery_percent"] == pytest.approx(fmean(recoveries))
    # One seed is above the gate and two are below it.
    assert (row["gate_verdict"], row["gate_passed"]) == ("cannot tell", None)
    assert row["recovery_percent_high"] > 95 > row["recovery_percent"]
    assert seed_count(row) == "mean of 3 seeds"


def test_latency_is_the_mean_of_the_medians(build, records):
    row = build.given(records).rows[1]
    medians = [record.speed.latency[0].inter_token_s.median for record in records[1:4]]
    assert row["inter_token_p50_s"] == pytest.approx(fmean(medians))
    lows = [record.speed.latency[0].inter_token_speedup.low for record in records[1:4]]
    assert row["inter_token_speedup_low"] == pytest.approx(fmean(lows))


def test_what_seeds_agree_on_has_no_deviation(build, records):
    row = build.given(records).rows[1]
    assert seed_deviation(row, "parameters") is None
    assert row["parameters"] == records[1].audit.parameters
    assert row["form"] == "dense with zeros"


@given(st.lists(st.floats(10, 1000), min_size=2, max_size=5))
def test_the_mean_lies_between_the_cells(build, values):
    records = [
        build.record(build.cell("wanda", seed=seed), value, 1.0)
        for seed, value in enumerate(values)
    ]
    [row] = build.given(records).rows
    assert min(values) <= row["perplexity"] * (1 + 1e-12)
    assert row["perplexity"] <= max(values) * (1 + 1e-12)
    assert (
        row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"]
        or seed_deviation(row, "perplexity") is None
    )


def test_failed_seeds_are_counted_and_not_averaged(build, records):
    records[2] = build.failed(records[2].cell)
    row = build.given(records).rows[1]
    assert seed_count(row) == "2 of 3 seeds"
    assert row["perplexity"] == pytest.approx((VALUES[0] + VALUES[2]) / 2)
    broken = [build.failed(record.cell) for record in records[1:4]]
    [row] = build.given(broken).rows
    assert (row["status"], row["error_phase"], seed_count(row)) == (
        "failed",
        "prune",
        "0 of 3 seeds",
    )


def test_the_table_has_a_row_for_each_group_and_below_it_one_for_each_seed(build, records):
    inputs = build.given(records, missing=(build.cell("shortgpt", seed=1, ratio=0.1),))
    rows = main_table.section(inputs)["rows"]
    assert [row["name"] for row in rows] == [
        "dense",
        "wanda sparsity=0.1",
        "magnitude",
        "shortgpt ratio=0.1",
    ]
    assert rows[1]["cells"][0]["text"] == "27.5 ± 1.8"
    assert "mean of 3 seeds" in rows[1]["tags"]
    assert [row["name"] for row in main_table.seed_section(inputs)["rows"]] == [
        f"wanda sparsity=0.1 · seed {n}" for n in range(3)
    ]
    assert len(cards.section(inputs)) == 5


def test_verdict_and_plots_are_about_the_groups(build, records):
    inputs = build.given(records)
    found = {one.key: one for one in verdict.section(inputs)}
    assert "the best is wanda sparsity=0.1 with 91.2 ± 5.8 % [" in found["speed"].text
    assert [span.cell for span in found["speed"].spans if span.cell] == [f"{records[1].id}-seeds"]
    assert quality_plots.section(inputs)[0].figures[-1].desc.startswith("3 cells.")


def test_links_of_single_cells_stay_valid(build, records, tmp_path):
    page = render(build.store(tmp_path / "run", records))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for record in records:
        assert f"row-{record.id}" in ids
        assert f"cell-{record.id}" in ids
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert "mean ± sample standard deviation" in page


def test_a_run_of_one_seed_has_no_second_table(build, tmp_path):
    records = build.quickstart()
    assert main_table.seed_section(build.given(records)) is None
    assert "Seed by seed" not in render(build.store(tmp_path / "run", records))
