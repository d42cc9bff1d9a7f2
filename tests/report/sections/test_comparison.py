"""Two runs against each other."""

from __future__ import annotations

import pytest

from prunebench_report import compare
from prunebench_report.sections.comparison import SAME


def cell(found, name, head):
    row = next(row for row in found["rows"] if row["name"] == name)
    return row["cells"][found["heads"].index(head)]


def test_a_run_against_itself_has_no_significant_change(build, tmp_path):
    folder = build.store(tmp_path / "a", build.quickstart()).folder
    found = compare(folder, folder)
    assert len(found["rows"]) == 8
    assert found["differs"] == []
    assert found["summary"].startswith("No significant change in 8 cells")
    assert not any(one["significant"] for row in found["rows"] for one in row["cells"])


def test_significant_changes_are_distinguished_from_noise(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()).folder
    changed = build.quickstart()
    changed[3] = build.record(changed[3].cell, 53.0, 1.002)  # within the errors
    changed[6] = build.record(changed[6].cell, 38.0, 1.3)  # beyond them
    b = build.store(tmp_path / "b", changed).folder
    found = compare(a, b)
    assert cell(found, "wanda sparsity=0.5", "Perplexity")["note"] == SAME
    assert cell(found, "wanda sparsity=0.5", "Speed-up")["significant"] is False
    better = cell(found, "shortgpt ratio=0.1", "Speed-up")
    assert (better["significant"], better["tone"]) == (True, "better")
    assert better["values"] == "1.11\N{MULTIPLICATION SIGN} to 1.30\N{MULTIPLICATION SIGN}"
    assert cell(found, "shortgpt ratio=0.1", "Perplexity")["tone"] == "better"
    assert cell(found, "shortgpt ratio=0.1", "Inter-token latency")["significant"] is None


def test_cells_pair_apart_from_what_differs_between_the_runs(build, tmp_path):
    a = build.quickstart()
    b = [
        record.model_copy(update={"cell": record.cell.model_copy(update={"device": "cuda:0"})})
        for record in build.quickstart()
    ]
    b = [record.model_copy(update={"id": record.cell.id}) for record in b]
    found = compare(
        build.store(tmp_path / "a", a).folder, build.store(tmp_path / "b", b[:-1]).folder
    )
    assert found["differs"] == [("device", "cpu", "cuda:0")]
    assert len(found["rows"]) == 7
    assert found["only_a"] == ["shortgpt ratio=0.25"]
    assert found["only_b"] == []


def test_the_file_is_one_document_without_a_script(build, tmp_path):
    strange = build.record(build.cell("</td><script>", ratio=0.1), 40.0, 1.2)
    folder = build.store(tmp_path / "a", [build.quickstart()[0], strange]).folder
    compare(folder, folder, tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "no significant change" in text


def test_one_cell_against_another_names_what_differs(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()[3:4]).folder
    b = build.store(tmp_path / "b", build.quickstart()[6:7]).folder
    found = compare(a, b)
    assert ("method.name", "wanda", "shortgpt") in found["differs"]
    assert len(found["rows"]) == 1


def test_runs_without_common_cells_say_so(build, tmp_path):
    a = build.store(tmp_path / "a", build.quickstart()[3:6]).folder
    b = build.store(tmp_path / "b", build.quickstart()[6:8]).folder
    found = compare(a, b)
    assert found["summary"] == "No cell has a result in both runs."
    assert len(found["only_a"]) == 3
    assert len(found["only_b"]) == 2


@pytest.mark.parametrize("missing", ["quality", "speed", "audit", "cost"])
def test_missing_parts_are_not_available(build, tmp_path, missing):
    a = build.store(tmp_path / "a", build.quickstart()).folder
    records = build.quickstart()
    for record in records:
        setattr(record, missing, None)
    found = compare(a, build.store(tmp_path / "b", records).folder)
    assert len(found["rows"]) == 8
