"""Several runs in one report, and a part of a run."""

from __future__ import annotations

import pytest

from prunebench.errors import PrunebenchError
from prunebench_report import render, write_report
from prunebench_report.data.load_runs import load_runs
from prunebench_report.data.names import short_name
from prunebench_report.sections import header, main_table, warnings


def row_names(given):
    return [row["name"] for row in main_table.section(given)["rows"]]


def test_a_cell_of_two_runs_is_shown_once_with_the_result_that_there_is(build, tmp_path):
    records = build.quickstart()
    a = build.store(tmp_path / "a", [build.failed(records[3].cell), *records[:3]])
    b = build.store(tmp_path / "b", records[3:])
    found = load_runs([a, b])
    assert [record.status for record in found.records].count("ok") == len(records)
    assert len(found.plan.cells) == len(records)
    assert found.runs[records[3].id] == "b"
    assert found.runs[records[0].id] == "a"


def test_rows_keep_the_name_of_their_run(build, tmp_path):
    records = build.quickstart()
    stores = [
        build.store(tmp_path / name, part)
        for name, part in (("one", records[:4]), ("two", records[4:]))
    ]
    given = load_runs(stores)
    tags = {row["name"]: row["tags"] for row in main_table.section(given)["rows"]}
    assert "run one" in tags["wanda sparsity=0.5"]
    assert "run two" in tags["shortgpt ratio=0.1"]
    assert [one.run for one in given.suites] == ["one", "two"]


def test_equal_labels_of_two_runs_are_told_apart_by_the_run(build, tmp_path):
    dense = build.quickstart()[0]
    moved = dense.cell.model_copy(update={"device": "cuda:0"})
    other = dense.model_copy(update={"cell": moved, "id": moved.id})
    given = load_runs([build.store(tmp_path / "a", [dense]), build.store(tmp_path / "b", [other])])
    assert sorted(row_names(given)) == ["dense · a", "dense · b"]


def test_a_part_of_a_run_keeps_dense(build, tmp_path):
    store = build.store(tmp_path / "run", build.quickstart())
    names = row_names(load_runs([store], ["wanda*"]))
    assert names == ["dense", "wanda sparsity=0.5", "wanda sparsity=2:4", "wanda sparsity=0.1"]
    with pytest.raises(PrunebenchError, match="no cell matches nothing"):
        load_runs([store], ["nothing"])


def test_one_file_for_several_runs(build, tmp_path):
    records = build.quickstart()
    folders = [build.store(tmp_path / str(n), records[n : n + 1]).folder for n in range(2)]
    path = write_report(*folders, out=tmp_path / "both.html")
    assert "run 1" in path.read_text(encoding="utf-8")
    assert not (folders[0] / "report.html").exists()


def test_several_runs_have_a_title_of_their_own_and_the_facts_of_each(build, tmp_path):
    records = build.quickstart()
    for record in records[4:]:
        record.provenance["cpu"] = "another processor"
    stores = [
        build.store(tmp_path / name, part)
        for name, part in (("one", records[:4]), ("two", records[4:]))
    ]
    given = load_runs(stores)
    assert given.plan.title == "2 runs: one, two"
    shown = header.section(given)["runs"]
    assert [(run["name"], run["cells"]) for run in shown] == [("one", 4), ("two", 4)]
    assert shown[1]["machines"] == ["another processor · 2 cores · 16.8 GB memory"]
    page = render(*stores)
    assert "<title>2 runs: one, two" in page
    assert "Run two" in page
    assert header.section(load_runs(stores[:1]))["runs"] == []


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_labels_of_two_runs_are_distinct_everywhere(build, tmp_path, seeds):
    """Also in plots and in the verdict, and if seeds share a row."""

    def moved(record):
        cell = record.cell.model_copy(update={"device": "cuda:0"})
        return record.model_copy(update={"cell": cell, "id": cell.id})

    records = [build.quickstart()[0]]
    records += [
        build.record(build.cell("wanda", seed=seed, sparsity=0.5), 50.0 + seed, 1.0)
        for seed in seeds
    ]
    records += [build.record(build.cell("magnitude", sparsity=0.5), 90.0, 1.0)]
    a = build.store(tmp_path / "cpu", records)
    b = build.store(tmp_path / "gpu", [moved(record) for record in records])
    given = load_runs([a, b])
    names = row_names(given)
    assert len(set(names)) == len(names) == 6
    assert {"wanda sparsity=0.5 · cpu", "wanda sparsity=0.5 · gpu"} <= set(names)
    assert [short_name(row) for row in given.rows if row["method"] == "wanda"] == [
        "wanda 0.5 · cpu",
        "wanda 0.5 · gpu",
    ]
    page = render(a, b)
    assert ">wanda 0.5 · gpu<" in page


def test_cells_that_both_runs_have_are_counted(build, tmp_path):
    stores = [build.store(tmp_path / name, build.quickstart()) for name in ("a", "b")]
    given = load_runs(stores)
    assert "8 cells are in several runs" in warnings.section(given)[0]
    assert not any("several runs" in one for one in warnings.section(load_runs(stores[:1])))
