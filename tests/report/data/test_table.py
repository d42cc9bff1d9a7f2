from __future__ import annotations

import math

import pytest

from prunebench.experiment.plugins import AllocationRef
from prunebench_report.data.columns import column_names
from prunebench_report.data.resources import granularity
from prunebench_report.data.seeds import seed_groups
from prunebench_report.data.table import build_table, data_frame


def by_name(records, gate=0.95):
    return {row["name"]: row for row in build_table(records, gate)}


def test_every_number_is_compared_with_dense(build):
    row = by_name(build.quickstart())["shortgpt ratio=0.25"]
    assert row["recovery_percent"] == pytest.approx(100 * 25.05 / 163.2)
    assert row["inter_token_speedup"] == 1.322
    assert row["inter_token_speedup_low"] < 1.322 < row["inter_token_speedup_high"]
    assert row["speedup_paired"] is True
    assert row["disk_ratio"] == pytest.approx(row["disk_bytes"] / 538092032)
    assert row["layers_removed"] == 8
    assert row["gate_passed"] is False


def test_dense_is_its_own_reference(build):
    records = build.quickstart()
    row = by_name(records)["dense"]
    assert (row["recovery_percent"], row["inter_token_speedup"], row["memory_ratio"]) == (100, 1, 1)
    assert row["dense_cell"] == records[0].id
    assert row["gate_passed"] is True
    assert row["speedup_paired"] is None


@pytest.mark.parametrize(("gate", "passed"), [(0.95, True), (0.97, False)])
def test_the_gate_is_a_share_of_dense_quality(build, gate, passed):
    assert by_name(build.quickstart(), gate)["wanda sparsity=0.1"]["gate_passed"] is passed


def test_without_interleaved_rounds_the_speed_up_compares_two_cells_and_has_no_interval(build):
    dense = build.quickstart()[0]
    apart = build.record(build.cell("shortgpt", ratio=0.1), 41.0, 1.1, paired=False)
    row = by_name([dense, apart])["shortgpt ratio=0.1"]
    assert row["inter_token_speedup"] == pytest.approx(
        dense.speed.latency[0].inter_token_s.median / apart.speed.latency[0].inter_token_s.median
    )
    assert row["speedup_paired"] is False
    assert row["inter_token_speedup_low"] is None


def test_a_dense_cell_of_another_model_or_protocol_is_not_compared(build):
    other = build.quickstart("another-model")[0]
    pruned = build.quickstart()[3]
    row = next(row for row in build_table([other, pruned], 0.95) if row["method"] == "wanda")
    assert row["dense_cell"] is None
    assert row["recovery_percent"] is None
    assert row["gate_passed"] is None
    longer = pruned.cell.perplexity[0].model_copy(update={"length": 2048})
    moved = pruned.cell.model_copy(update={"perplexity": (longer,)})
    changed = pruned.model_copy(update={"cell": moved, "id": moved.id})
    assert build_table([build.quickstart()[0], changed], 0.95)[1]["dense_cell"] is None


def test_other_tokens_are_not_compared(build):
    dense, pruned = build.quickstart()[0], build.quickstart()[3]
    pruned.quality.perplexity[0].tokens_sha256 = "0" * 64
    assert build_table([dense, pruned], 0.95)[1]["recovery_percent"] is None


def test_more_protocols_have_columns_of_their_own(build):
    records = [build.quickstart()[0], build.quickstart()[3]]
    for record, value in zip(records, (30.0, 40.0), strict=True):
        record.quality.perplexity.append(build.perplexity(value, "wikitext2"))
    row = build_table(records, 0.6)[1]
    assert row["perplexity_2"] == 40
    assert row["recovery_percent_2"] == pytest.approx(75)
    assert row["perplexity_protocol_2"].startswith("wikitext2")
    assert row["gate_passed"] is False  # the first protocol has 48 %


def test_a_failed_cell_has_its_error_and_no_numbers(build):
    row = build_table([build.failed(build.cell("wanda", sparsity=0.5))], 0.95)[0]
    assert (row["status"], row["error_type"], row["error_phase"]) == (
        "failed",
        "IndexError",
        "prune",
    )
    assert row["perplexity"] is None
    assert row["inter_token_speedup"] is None


def test_the_data_frame_is_the_same_table_with_nullable_types(build):
    rows = build_table([*build.quickstart(), build.failed(build.cell("sparsegpt"))], 0.95)
    frame = data_frame(rows)
    values = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    assert values == rows
    assert list(frame.columns) == column_names(1, 1)
    assert str(frame["parameters"].dtype) == "Int64"
    assert str(frame["perplexity"].dtype) == "Float64"


def test_no_records_make_a_table_with_columns_and_no_rows():
    assert build_table([], 0.95) == []
    assert data_frame([]).shape == (0, len(column_names(0, 0)))


def test_infinite_numbers_are_missing(build):
    records = build.quickstart()[:2]
    records[1].quality.perplexity[0].perplexity = math.inf
    records[1].quality.perplexity[0].nll = math.inf
    row = build_table(records, 0.95)[1]
    assert (row["perplexity"], row["nll_nats"], row["recovery_percent"]) == (None, None, None)


@pytest.mark.parametrize(
    ("index", "word"),
    [(0, "none"), (1, "unstructured"), (4, "n:m"), (6, "layers")],
    ids=["dense", "random", "2:4", "shortgpt"],
)
def test_what_was_pruned_is_found_by_counting(build, index, word):
    assert granularity(build.quickstart()[index].audit) == word


def test_an_allocation_has_columns_and_keeps_its_cell_apart(build):
    plain = build.cell("wanda", sparsity=0.5)
    owl = AllocationRef(
        name="owl", distribution="prunebench", version="0.1.0", options={"spread": 0.08}
    )
    allocated = plain.model_copy(update={"allocation": owl})
    rows = build_table([build.record(cell, 28.0, 1.1) for cell in (plain, allocated)], 0.95)
    assert [row["allocation"] for row in rows] == [None, "owl"]
    assert rows[1]["allocation_options"] == '{"spread": 0.08}'
    assert seed_groups([plain, allocated]) == [[plain.id], [allocated.id]]
