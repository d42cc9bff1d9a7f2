"""The section about calibration texts: its rows, and when it is there."""

from __future__ import annotations

import pytest

from prunebench.record.quality import TaskMetric, TaskResult
from prunebench.record.record import Record
from prunebench_report import render
from prunebench_report.sections import calibration

EVIL = "<script>c4</script>"


def with_task(record: Record, value: float) -> Record:
    metric = TaskMetric(metric="acc", filter="none", value=value, stderr=0.01)
    task = TaskResult(
        task="boolq",
        asked=True,
        data="hub",
        num_fewshot=0,
        version="1",
        samples=200,
        samples_total=200,
        metrics=[metric],
        headline="acc",
        seeds={},
        harness="0.4.13",
    )
    quality = record.quality.model_copy(update={"tasks": [task]})
    return record.model_copy(update={"quality": quality})


@pytest.fixture
def records(build) -> list[Record]:
    found = [with_task(build.record(build.cell("dense"), 25.0, 1.0), 0.8)]
    for corpus, value in ((EVIL, 30.0), ("alpaca", 40.0)):
        for seed in (0, 1):
            cell = build.cell("wanda", seed=seed, sparsity=0.5)
            ref = cell.calibration.corpus.model_copy(update={"name": corpus})
            spec = cell.calibration.model_copy(update={"corpus": ref})
            cell = cell.model_copy(update={"calibration": spec})
            found.append(with_task(build.record(cell, value + seed, 1.0), value / 60))
    return found


def test_a_method_has_a_row_for_perplexity_for_tasks_and_for_each_task(build, records) -> None:
    [one] = calibration.section(build.given(records))
    assert (one["model"], one["several"]) == (None, True)
    [method] = one["methods"]
    assert method["name"] == "wanda sparsity=0.5"
    perplexity, tasks, boolq = method["rows"]
    assert [row["figure"] for row in method["rows"]] == [
        "perplexity recovery, boolq-passages",
        "recovery over tasks",
        "boolq acc",
    ]
    assert perplexity["lowest"] == {"name": "alpaca", "mean": "61.7"}
    assert perplexity["highest"] == {"name": EVIL, "mean": "82.0"}
    assert (perplexity["mean"], perplexity["over_texts"]) == ("71.9", "14.32")
    assert (perplexity["cells"], perplexity["made_of"]) == ("4", "2 texts, 2 seeds each")
    assert (boolq["mean"], boolq["over_seeds"]) == ("58.3", "0.00")
    assert tasks["mean"] == "72.9"


def test_ticks_are_on_a_scale_that_methods_share(build, records) -> None:
    other = [build.record(build.cell("shortgpt", seed=seed, count=3), 50.0, 1.0) for seed in (0, 1)]
    [one] = calibration.section(build.given([*records, *other]))
    wanda, shortgpt = (method["rows"][0]["scale"] for method in one["methods"])
    assert (wanda["low"], wanda["high"]) == (shortgpt["low"], shortgpt["high"]) == ("50.0", "83.3")
    assert shortgpt["ticks"] == "M6.0 1v16M6.0 1v16"
    assert wanda["ticks"].startswith("M202.0 1v16")
    assert len(wanda["dots"]) == 2


def test_the_page_has_the_section_only_if_the_calibration_varies(build, records, tmp_path) -> None:
    words = "What the calibration text changes"
    page = render(build.store(tmp_path / "varies", records))
    assert page.count(words) >= 2
    assert EVIL not in page
    assert 'href="#calibration"' in page
    assert words not in render(build.store(tmp_path / "fixed", build.quickstart()))


def test_with_seeds_alone_no_column_is_about_calibrations(build, records, tmp_path) -> None:
    only = [records[0], *records[3:]]
    [one] = calibration.section(build.given(only))
    assert one["several"] is False
    page = render(build.store(tmp_path / "run", only))
    assert "over seeds" in page
    assert "over texts" not in page
