"""The table of all cells: rows, columns with units, differences from dense in words."""

from __future__ import annotations

import pytest

from prunebench_report.sections import main_table

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def table(build):
    records = [*build.quickstart(), build.failed(build.cell("sparsegpt", sparsity=0.5))]
    return main_table.section(build.given(records, missing=(build.cell("owl", sparsity=0.6),)))


def cell(table, name, column):
    row = next(row for row in table["rows"] if row["name"] == name)
    return row["cells"][[one["key"] for one in table["columns"]].index(column)]


def test_every_cell_of_the_plan_has_a_row_and_dense_comes_first(table):
    names = [row["name"] for row in table["rows"]]
    assert len(names) == 10
    assert names[0] == "dense"
    assert names[-1] == "owl sparsity=0.6"


def test_every_model_has_a_baseline_of_its_own(build):
    table = main_table.section(build.given([*build.quickstart(), *build.quickstart("other")]))
    assert [index for index, row in enumerate(table["rows"]) if row["dense"]] == [0, 8]


def test_columns_are_grouped_and_have_units(table):
    assert [group["name"] for group in table["groups"]] == [
        "Quality",
        "Speed",
        "Memory",
        "Size",
        "Cost",
    ]
    assert sum(group["span"] for group in table["groups"]) == len(table["columns"])
    assert sum(one["first"] for one in table["columns"]) == len(table["groups"])
    columns = {one["key"]: one for one in table["columns"]}
    assert columns["inter_token_p50_s"]["unit"] == "ms"
    assert columns["disk_bytes"]["unit"] == "MB"
    assert columns["recovery_percent"]["note"] == "gate 95 %"
    assert [key for key, one in columns.items() if one["judged"]] == ["recovery_percent"]
    assert "peak_gpu_bytes" not in columns


def test_cells_show_value_difference_and_tone(table):
    assert cell(table, "wanda sparsity=0.5", "perplexity") | {"first": None} == {
        "text": "52.3",
        "sort": "52.31",
        "note": "+109 %",
        "tone": "worse",
        "also": None,
        "interval": False,
        "below": False,
        "unsure": False,
        "greyed": False,
        "worded": True,
        "first": None,
    }
    assert cell(table, "shortgpt ratio=0.25", "disk_bytes")["note"] == f"{MINUS}21 %"
    assert cell(table, "shortgpt ratio=0.25", "disk_bytes")["tone"] == "better"
    assert cell(table, "random sparsity=0.5", "perplexity")["note"] == f"728{TIMES} dense"
    assert cell(table, "dense", "perplexity")["note"] is None


def test_a_speed_up_shows_its_interval(table):
    speedup = cell(table, "shortgpt ratio=0.1", "inter_token_speedup")
    assert (speedup["note"], speedup["interval"], speedup["tone"]) == (
        "1.09 to 1.12",
        True,
        "better",
    )


def test_a_speed_within_its_noise_is_no_change(table):
    assert cell(table, "wanda sparsity=0.1", "inter_token_p50_s")["note"] == "no change"
    assert cell(table, "wanda sparsity=0.1", "tokens_per_s")["note"] == "no change"
    assert cell(table, "shortgpt ratio=0.1", "inter_token_p50_s")["note"] == f"{MINUS}9.7 %"
    assert cell(table, "shortgpt ratio=0.1", "tokens_per_s")["note"] == "+11 %"


def test_times_stand_beside_those_of_the_dense_rounds_between_them(build):
    """Of another minute than the dense cell's own row: the machine's speed drifts."""
    records = build.quickstart()
    timed = records[6].speed.latency[0]
    slow = timed.dense_inter_token_s.model_copy(update={"median": 0.0777})
    records[6].speed.latency[0] = timed.model_copy(update={"dense_inter_token_s": slow})
    given = build.given(records)
    assert given.row_by_id[records[6].id]["dense_inter_token_p50_s"] == 0.0777
    rows = main_table.section(given)
    assert cell(rows, "shortgpt ratio=0.1", "inter_token_p50_s")["also"] == "dense 77.7"
    assert cell(rows, "dense", "inter_token_p50_s")["also"] is None
    apart = build.record(build.cell("shortgpt", ratio=0.2), 41.0, 1.1, paired=False)
    rows = main_table.section(build.given([records[0], apart]))
    assert cell(rows, "shortgpt ratio=0.2", "inter_token_p50_s")["also"] is None


def test_speed_below_the_gate_is_greyed_and_quality_says_so(table):
    assert cell(table, "shortgpt ratio=0.25", "inter_token_speedup")["greyed"]
    below = cell(table, "shortgpt ratio=0.25", "recovery_percent")
    assert (below["note"], below["also"]) == ("15.0 to 15.8", "below the gate")
    assert not cell(table, "wanda sparsity=0.1", "inter_token_speedup")["greyed"]


def test_a_perplexity_within_its_error_is_neither_better_nor_worse(build):
    records = [build.quickstart()[0], build.record(build.cell("wanda", sparsity=0.1), 25.06, 1.0)]
    found = cell(main_table.section(build.given(records)), "wanda sparsity=0.1", "perplexity")
    assert (found["note"], found["tone"]) == ("= dense", None)
    records[1] = build.record(build.cell("wanda", sparsity=0.1), 25.08, 1.0)
    found = cell(main_table.section(build.given(records)), "wanda sparsity=0.1", "perplexity")
    assert (found["note"], found["tone"]) == ("+0.1 %, within error", None)
