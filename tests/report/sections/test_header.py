"""The head of the report."""

from __future__ import annotations

import pytest

from prunebench_report import render
from prunebench_report.data.load_runs import load_runs
from prunebench_report.sections import header
from prunebench_report.sections.provenance import flatten, in_words, split_facts


def test_the_header_names_run_machine_and_totals(build, tmp_path):
    records = [*build.quickstart(), build.failed(build.cell("sparsegpt"), "out-of-memory")]
    store = build.store(tmp_path / "run", records, missing=[build.cell("owl", sparsity=0.6)])
    shown = header.section(load_runs([store]))
    assert shown["title"] == "Quickstart: pruning a small model on a CPU"
    assert shown["when"] == "2026-11-02 10:33 to 10:34 UTC"
    assert shown["machines"] == ["AMD EPYC 9V74 80-Core Processor · 2 cores · 16.8 GB memory"]
    assert shown["totals"] == [
        {"status": "ok", "count": 8},
        {"status": "out-of-memory", "count": 1},
        {"status": "not run", "count": 1},
    ]
    assert shown["version"] == "0.1.0"


def test_a_plan_without_a_title_is_titled_by_its_name(build, tmp_path):
    store = build.store(tmp_path / "run", build.quickstart()[:1], title="")
    assert header.section(load_runs([store]))["title"] == "quickstart"


def test_facts_that_all_cells_share_are_listed_once(build):
    shared, own = split_facts(build.quickstart())
    assert shared["torch"] == "2.13.0+cpu"
    assert shared["gpus"] == "not available"
    assert "load_average" not in shared
    assert all("load_average" in facts for facts in own.values())


@pytest.mark.parametrize(
    ("fact", "shown"),
    [
        ({"memory_bytes": 25276502016}, ("memory", "25.3 GB")),
        ({"bandwidth_bytes_per_s": 50e9}, ("bandwidth", "50.0 GB/s")),
        ({"solver": {"time_s": 0.01234567}}, ("solver.time", "12.3 ms")),
        ({"kept_percent": 49.98765}, ("kept", "50.0 %")),
        ({"limit_w": 350.0}, ("limit", "350 W")),
        ({"sizes_bytes": [2000, 3000000]}, ("sizes", "2.00 kB, 3.00 MB")),
        ({"gpus": [{"memory_bytes": 85899345920}]}, ("gpus.memory", "85.9 GB")),
        ({"influence": 0.03099999999999281}, ("influence", "0.031")),
        ({"influence": [0.03099999999999281, 1]}, ("influence", "0.031, 1")),
        ({"memory_bytes": "not read"}, ("memory_bytes", "not read")),
        ({"torch": "2.13.0+cpu"}, ("torch", "2.13.0+cpu")),
    ],
)
def test_facts_are_in_units_for_people(fact, shown):
    assert in_words(flatten(fact)) == [shown]


def test_no_page_shows_raw_bytes(build, tmp_path):
    records = build.quickstart()[:2]
    for record in records:
        record.provenance["memory_bytes"] = 25276502016
        record.provenance["gpus"] = [{"name": "card", "memory_bytes": 85899345920}]
        record.method_notes = {"saved_bytes": 123456789}
    page = render(build.store(tmp_path / "run", records))
    shown = page.partition('<script type="application/json"')[0]
    for raw in ("25276502016", "85899345920", "123456789", ">memory_bytes<"):
        assert raw not in shown
    for human in ("25.3 GB", "85.9 GB", "123 MB"):
        assert human in shown
