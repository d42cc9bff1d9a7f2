"""Facts of the view-model that the page must show, whatever it looks like."""

from __future__ import annotations

import json

import pytest

from shown import view

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def shown(build, tmp_path):
    records = [
        *build.quickstart(),
        build.failed(build.cell("sparsegpt", sparsity=0.5), "out-of-memory"),
    ]
    return view(build.store(tmp_path / "run", records, missing=[build.cell("owl", sparsity=0.6)]))


def cell(shown, name, column):
    row = next(row for row in shown["table"]["rows"] if row["name"] == name)
    keys = [one["key"] for one in shown["table"]["columns"]]
    return row["cells"][keys.index(column)]


def test_the_header_names_run_machine_and_totals(shown):
    assert shown["title"] == "Quickstart: pruning a small model on a CPU"
    assert shown["when"] == "2026-11-02 10:33 to 10:34 UTC"
    assert shown["machines"] == ["AMD EPYC 9V74 80-Core Processor · 2 cores · 16.8 GB memory"]
    assert shown["totals"] == [
        {"status": "ok", "count": 8},
        {"status": "out-of-memory", "count": 1},
        {"status": "not run", "count": 1},
    ]
    assert shown["version"] == "0.1.0"


def test_every_cell_of_the_plan_has_a_row_and_dense_comes_first(shown):
    names = [row["name"] for row in shown["table"]["rows"]]
    assert len(names) == 10
    assert names[0] == "dense"
    assert names[-1] == "owl sparsity=0.6"


def test_columns_are_grouped_and_carry_units(shown):
    assert [group["name"] for group in shown["table"]["groups"]] == [
        "Quality",
        "Speed",
        "Memory",
        "Size",
        "Cost",
    ]
    assert sum(group["span"] for group in shown["table"]["groups"]) == len(
        shown["table"]["columns"]
    )
    units = {one["key"]: one["unit"] for one in shown["table"]["columns"]}
    assert units["inter_token_p50_s"] == "ms"
    assert units["disk_bytes"] == "MB"
    assert (
        next(one for one in shown["table"]["columns"] if one["key"] == "recovery_percent")["note"]
        == "gate 95 %"
    )
    assert "peak_gpu_bytes" not in units


def test_cells_show_value_delta_and_tone(shown):
    assert cell(shown, "wanda sparsity=0.5", "perplexity") | {"first": None} == {
        "text": "52.3",
        "sort": "52.31",
        "note": "+109 %",
        "tone": "worse",
        "greyed": False,
        "worded": True,
        "first": None,
    }
    assert cell(shown, "shortgpt ratio=0.25", "disk_bytes")["note"] == f"{MINUS}21 %"
    assert cell(shown, "shortgpt ratio=0.25", "disk_bytes")["tone"] == "better"
    assert cell(shown, "random sparsity=0.5", "perplexity")["note"] == f"728{TIMES} dense"
    assert cell(shown, "dense", "perplexity")["note"] is None


def test_a_speed_within_its_noise_is_no_change(shown):
    assert cell(shown, "wanda sparsity=0.1", "inter_token_p50_s")["note"] == "no change"
    assert cell(shown, "wanda sparsity=0.1", "tokens_per_s")["note"] == "no change"
    assert cell(shown, "shortgpt ratio=0.1", "inter_token_p50_s")["note"] == f"{MINUS}9.7 %"
    assert cell(shown, "shortgpt ratio=0.1", "tokens_per_s")["note"] == "+11 %"


def test_speed_below_the_gate_is_greyed_and_quality_says_so(shown):
    assert cell(shown, "shortgpt ratio=0.25", "inter_token_speedup")["greyed"]
    assert cell(shown, "shortgpt ratio=0.25", "recovery_percent")["note"] == "below the gate"
    assert not cell(shown, "wanda sparsity=0.1", "inter_token_speedup")["greyed"]


def test_failures_say_where_why_and_how_to_run_again(shown):
    (failure,) = shown["failures"]
    assert (failure["status"], failure["phase"], failure["type"]) == (
        "out-of-memory",
        "prune",
        "IndexError",
    )
    assert failure["command"].endswith(f"specs/{failure['id']}.json")
    assert failure["peak"] == "1.30 GB"
    assert len(failure["log"].splitlines()) == 20


def test_a_card_holds_what_the_record_holds(shown):
    card = next(one for one in shown["cards"] if one["name"] == "wanda sparsity=2:4")
    assert ("Pattern 2:4", "0 of 26,542,080 groups break it") in card["audit"]
    assert card["heatmap"]["title"] == "Weights that are zero or cut off, by layer and linear"
    assert card["quality"][0]["protocol"].startswith(
        "boolq-passages validation, 16 windows of 1024 tokens"
    )
    assert card["floors"][0]["bytes"] == "538 MB weights + 6.60 MB KV cache"
    assert [one["name"] for one in card["phases"]] == [
        "fetch",
        "load",
        "prune",
        "audit",
        "perplexity",
        "latency",
    ]
    assert [row[0] for row in card["speed"][0]["rows"]][-1] == "Between tokens, dense between"
    assert "load_average" in dict(card["provenance"])
    assert ("Calibration", "boolq-passages train, concatenated, 32 windows of 512 tokens") in card[
        "method"
    ]


def test_what_all_cells_share_is_said_once(shown):
    shared = dict(shown["provenance"])
    assert shared["torch"] == "2.13.0+cpu"
    assert shared["gpus"] == "not available"
    assert "load_average" not in shared


def cells_of(data):
    """The cells that stand in the embedded data, whole."""
    return [
        {**data["same"], **dict(zip(data["varying"], line, strict=True))} for line in data["cells"]
    ]


def test_the_embedded_data_are_the_table(shown):
    data = json.loads(shown["data"])
    cells = cells_of(data)
    assert [one["status"] for one in cells] == ["ok"] * 8 + ["out-of-memory"]
    assert all(set(one) == set(data["columns"]) for one in cells)
    assert data["same"]["device"] == "cpu"
    assert data["gate"] == 0.95


def test_figures_mark_the_frontier_and_link_to_rows(shown):
    speed, memory, size = shown["figures"]
    assert "Not dominated: dense, shortgpt ratio=0.1, shortgpt ratio=0.25." in speed["desc"]
    for row in shown["table"]["rows"][1:8]:
        assert f'href="#row-{row["id"]}"' in speed["svg"]
    assert "Weights in memory, MB" in memory["desc"]
    assert "var(--ink)" in size["svg"]
    assert "#0101" not in size["svg"]
    assert len(speed["svg"]) < 60_000


def test_a_plan_without_a_title_falls_back_on_its_name(build, tmp_path):
    assert (
        view(build.store(tmp_path / "run", build.quickstart()[:1], title=""))["title"]
        == "quickstart"
    )


def warned(build, folder, records, **extra):
    return " ".join(view(build.store(folder, records, **extra))["warnings"])


def test_a_complete_run_has_no_warning(build, tmp_path):
    assert warned(build, tmp_path / "run", build.quickstart()) == ""


def test_what_makes_numbers_incomparable_is_said(build, tmp_path):
    records = build.quickstart()
    records[1].provenance["cpu"] = "another processor"
    records[2] = build.record(records[2].cell, 812.0, 1.0, paired=False)
    for record in records:
        record.provenance["cpu_governor"] = "powersave"
    text = warned(build, tmp_path / "run", records, missing=[build.cell("owl")])
    assert "Not run: 1 of 9 cells" in text
    assert "2 different machines" in text
    assert "1 cells were not timed" in text
    assert "'powersave'" in text
    assert "No dense cell finished" in warned(build, tmp_path / "other", build.quickstart()[1:3])


def test_a_damaged_record_is_a_row_a_warning_and_a_failure(build, tmp_path):
    records = build.quickstart()
    store = build.store(tmp_path / "run", records)
    store.record_path(records[3].id).write_text('{"schema": 1', encoding="utf-8")
    shown = view(store)
    assert shown["totals"][-1] == {"status": "damaged", "count": 1}
    assert f"{records[3].id}.json cannot be used" in shown["warnings"][0]
    assert shown["damaged"][0]["name"] == "wanda sparsity=0.5"
    assert [row["status"] for row in shown["table"]["rows"]].count("damaged") == 1


def test_two_models_have_figures_and_baselines_of_their_own(build, tmp_path):
    shown = view(build.store(tmp_path / "run", [*build.quickstart(), *build.quickstart("other")]))
    assert [one["caption"] for one in shown["figures"]] == [
        "Quality against speed, smollm2-135m-instruct",
        "Quality against memory, smollm2-135m-instruct",
        "Quality against size, smollm2-135m-instruct",
        "Quality against speed, other",
        "Quality against memory, other",
        "Quality against size, other",
    ]
    assert [row["dense"] for row in shown["table"]["rows"]].count(True) == 2
