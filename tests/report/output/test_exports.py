from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing

import pytest

from prunebench.errors import PrunebenchError
from prunebench_report import export
from prunebench_report.data.columns import column_names


@pytest.fixture
def run(build, tmp_path):
    records = [
        *build.quickstart(),
        build.failed(build.cell("sparsegpt", sparsity=0.5), message='a "b",\nc'),
    ]
    return build.store(tmp_path / "run", records).folder


def test_json_is_a_list_of_rows_with_null_for_what_is_missing(run):
    rows = json.loads(
        export(run, "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert [row["status"] for row in rows] == ["ok"] * 8 + ["failed"]
    assert rows[-1]["perplexity"] is None
    assert rows[1]["perplexity"] == 18234.0
    assert list(rows[0]) == column_names(1, 1)


def test_csv_gives_the_same_values(run):
    rows = json.loads(export(run, "json"))
    lines = list(csv.DictReader(io.StringIO(export(run, "csv"))))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()} == line


def test_parquet_and_sqlite_give_the_same_values(run, tmp_path):
    import pandas as pd

    rows = json.loads(export(run, "json"))
    assert export(run, "parquet", tmp_path / "deep" / "run.parquet") is None
    frame = pd.read_parquet(tmp_path / "deep" / "run.parquet", dtype_backend="numpy_nullable")
    assert frame.astype(object).where(frame.notna(), None).to_dict(orient="records") == rows
    assert export(run, "sqlite", tmp_path / "run.db") is None
    with closing(sqlite3.connect(tmp_path / "run.db")) as connection:
        connection.row_factory = sqlite3.Row
        stored = [dict(row) for row in connection.execute("SELECT * FROM cells")]
    assert stored == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "run", "run.db"]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_text_goes_to_a_file_if_one_is_named(run, tmp_path, form):
    assert export(run, form, tmp_path / "out") is None
    assert (tmp_path / "out").read_text(encoding="utf-8") == export(run, form)


@pytest.mark.parametrize("form", ["parquet", "sqlite"])
def test_binary_formats_need_a_file(run, form):
    with pytest.raises(PrunebenchError, match="cannot be printed") as caught:
        export(run, form)
    assert "--out" in caught.value.hint


def test_bad_requests_say_how_to_fix_them(run, tmp_path):
    with pytest.raises(PrunebenchError, match="unknown export format 'jsn'") as caught:
        export(run, "jsn")
    assert caught.value.hint == "did you mean 'json'?"
    with pytest.raises(PrunebenchError, match=r"no plan\.json"):
        export(tmp_path / "nothing", "json")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PrunebenchError, match="cannot write"):
        export(run, "sqlite", tmp_path / "file" / "run.db")


def test_a_run_without_records_gives_an_empty_table(build, tmp_path):
    folder = build.store(tmp_path / "run", [], missing=[build.cell("dense")]).folder
    assert json.loads(export(folder, "json")) == []
    assert export(folder, "csv").splitlines() == [",".join(column_names(1, 1))]
