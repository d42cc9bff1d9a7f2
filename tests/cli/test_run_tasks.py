"""A suite with a task from a folder, through the command line: record, export and report."""

from __future__ import annotations

import json

import pytest

from prunebench.store.run_folder import RunStore
from rig import Rig
from task_folder import task_folder


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    made = Rig(tmp_path_factory.mktemp("run"))
    task_folder(made.folder / "data")
    suite = made.suite("magnitude: {sparsity: 0.9}")
    text = suite.read_text().replace(
        "quality:\n", "quality:\n  tasks: [{task: [arc_easy, hellaswag], data: ./data, limit: 8}]\n"
    )
    suite.write_text(text)
    return made


def test_scores_are_in_record_export_and_report(rig: Rig) -> None:
    result = rig.run("tiny.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    records, damaged = RunStore.open(rig.folder / "runs" / "tiny").records()
    assert not damaged
    for record in records:
        assert [(one.task, one.samples) for one in record.quality.tasks] == [
            ("arc_easy", 8),
            ("hellaswag", 8),
        ]
        assert record.quality.perplexity
        assert "tasks" in [phase.phase for phase in record.cost.phases]
    rows = json.loads(rig.invoke("export", "runs/tiny", "--format", "json").stdout)
    assert [row["task_2"] for row in rows] == ["hellaswag", "hellaswag"]
    assert rows[0]["tasks_recovery_percent"] in {100, None}
    html = (rig.folder / "runs" / "tiny" / "report.html").read_text()
    assert "Quality by task" in html
    assert "rows from data" in html


def test_a_task_that_is_misspelt_stops_before_anything_runs(rig: Rig) -> None:
    result = rig.invoke("run", "tiny.yaml", "--set", "quality.tasks=arc_esay", "--out", "other")
    assert result.returncode == 2
    assert "did you mean 'arc_easy'?" in result.stderr
    assert not (rig.folder / "other").exists()
