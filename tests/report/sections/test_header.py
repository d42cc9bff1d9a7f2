"""The head of the report."""

from __future__ import annotations

from prunebench_report.data.load_runs import load_runs
from prunebench_report.sections import header
from prunebench_report.sections.provenance import split_facts


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
