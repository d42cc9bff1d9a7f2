"""Tasks in the table, the gate, the verdict and the section."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.record.quality import TaskMetric, TaskResult
from prunebench.record.record import Record
from prunebench_report import render
from prunebench_report.data.table import build_table
from prunebench_report.sections import cards, main_table, task_plots, tasks, verdict
from prunebench_report.text import MINUS

DENSE = {"boolq": 0.60, "arc_easy": 0.50, "hellaswag": 0.40}


def score(task: str, value: float | None, **more) -> TaskResult:
    metric = TaskMetric(
        metric="acc", filter="none", value=value, stderr=0.01, higher_is_better=True
    )
    facts = {
        "task": task,
        "asked": True,
        "data": "zeroshot-assets",
        "num_fewshot": 0,
        "version": "1.0",
        "samples": 200,
        "samples_total": 3270,
        "metrics": [metric],
        "headline": "acc",
        "seeds": {"random": 0},
        "harness": "0.4.13",
    }
    return TaskResult(**{**facts, **more})


def scored(record: Record, scores: dict[str, float | None]) -> Record:
    quality = record.quality.model_copy(
        update={"tasks": [score(task, value) for task, value in scores.items()]}
    )
    return record.model_copy(update={"quality": quality})


@pytest.fixture
def records(build) -> list[Record]:
    """Dense, wanda with 96 % of the tasks but a bad perplexity, and shortgpt with 60 %."""
    dense, _, _, wanda, _, _, shortgpt, _ = build.quickstart()
    return [
        scored(dense, DENSE),
        scored(wanda, {"boolq": 0.59, "arc_easy": 0.50, "hellaswag": 0.36}),
        scored(shortgpt, {task: 0.6 * value for task, value in DENSE.items()}),
    ]


def test_recovery_is_the_mean_of_ratios_and_decides_the_gate(records):
    dense, wanda, shortgpt = build_table(records, 0.95)
    assert wanda["tasks_recovery_percent"] == pytest.approx(100 * (0.59 / 0.60 + 1 + 0.9) / 3)
    # Three tasks of 200 questions: the gate of 95 % is inside the interval of 96.1 %.
    low, high = wanda["tasks_recovery_percent_low"], wanda["tasks_recovery_percent_high"]
    assert (low, high) == pytest.approx((92.86, 99.36), abs=0.01)
    assert (wanda["gate_verdict"], wanda["gate_passed"]) == ("cannot tell", None)
    assert build_table(records, 0.9)[1]["gate_passed"] is True
    assert wanda["recovery_percent"] < 50  # perplexity alone would say no
    assert (shortgpt["tasks_recovery_percent"], shortgpt["gate_passed"]) == (
        pytest.approx(60),
        False,
    )
    assert (dense["tasks_recovery_percent"], dense["tasks_mean"]) == (100, pytest.approx(0.5))
    assert (wanda["task"], wanda["task_value"], wanda["task_stderr"]) == ("boolq", 0.59, 0.01)
    assert wanda["task_z_3"] == pytest.approx(-0.04 / 0.01 / 2**0.5)
    assert wanda["task_protocol"] == (
        "boolq acc, 0-shot, 200 of 3,270 questions, rows from zeroshot-assets, lm-eval 0.4.13, "
        "task version 1.0"
    )


def test_without_tasks_nothing_changes(build):
    rows = build_table(build.quickstart(), 0.95)
    assert not any(key.startswith("task") for key in rows[0])
    assert rows[-1]["gate_passed"] is False


def test_a_score_that_is_missing_leaves_the_mean_open(records):
    records[1] = scored(records[1], {"boolq": 0.59, "arc_easy": None, "hellaswag": 0.36})
    row = build_table(records, 0.95)[1]
    assert (row["tasks_mean"], row["tasks_recovery_percent"], row["gate_passed"]) == (
        None,
        None,
        None,
    )
    alone = build_table(records[1:], 0.95)[1]
    assert (alone["tasks_recovery_percent"], alone["gate_passed"]) == (None, None)
    assert alone["tasks_mean"] == pytest.approx(0.3)


def test_if_lower_is_better_the_ratio_is_inverted(records):
    def perplexities(value: float) -> list[TaskResult]:
        metric = TaskMetric(
            metric="word_perplexity",
            filter="none",
            value=value,
            stderr=None,
            higher_is_better=False,
        )
        return [score("wikitext", None, metrics=[metric], headline="word_perplexity")]

    for record, value in zip(records, (20.0, 25.0, 40.0), strict=True):
        record.quality.tasks = perplexities(value)
    assert build_table(records, 0.95)[1]["tasks_recovery_percent"] == pytest.approx(80)


def test_the_section_says_whether_a_difference_is_within_the_error(build, records):
    (table,) = tasks.section(build.given(records[::-1]))
    assert [head["name"] for head in table["heads"]] == list(DENSE)
    dense, *others = table["rows"]
    assert dense["dense"]
    assert [cell["text"] for cell in dense["cells"]] == [
        "50.0 ± 0.6",
        "60.0 ± 1.0",
        "50.0 ± 1.0",
        "40.0 ± 1.0",
    ]
    assert {cell["note"] for cell in dense["cells"]} == {None}
    wanda = next(row for row in others if row["name"].startswith("wanda"))
    notes = [f"{MINUS}1.7", f"{MINUS}1.0, within error", "+0.0, within error", f"{MINUS}4.0, worse"]
    assert [cell["note"] for cell in wanda["cells"]] == notes
    assert [cell["tone"] for cell in wanda["cells"]] == [None, None, None, "worse"]


def test_parts_of_a_group_are_in_the_card_alone(build, records):
    for record in records:
        record.quality.tasks += [score("mmlu_anatomy", 0.3, asked=False, group="mmlu")]
    given = build.given(records)
    assert given.table[0]["tasks_run"] == 3
    (table,) = tasks.section(given)
    assert len(table["heads"]) == 3
    assert "mmlu / mmlu_anatomy" in dict(cards.section(given)[0]["tasks"])


def test_verdict_and_report_say_that_tasks_decide(build, records, tmp_path: Path):
    given = build.given(records)
    statements = {one.key: one for one in verdict.section(given)}
    assert statements["speed"].text.startswith(
        "No pruned cell surely keeps 95 % of dense quality; the best is wanda sparsity=0.5 with "
        "96.1 % [92.9, 99.4]"
    )
    assert statements["speed"].figure == "unsure"
    table = main_table.section(given)
    notes = {column["key"]: column["note"] for column in table["columns"]}
    assert "tasks_mean" in notes
    assert notes["tasks_recovery_percent"] == "gate 95 %"
    assert table["gate"] == "95 % mean task"
    store = build.store(tmp_path / "run", records)
    html = render(store)
    assert 'id="tasks"' in html
    assert "Mean recovery over tasks" in html
    assert f"{MINUS}4.0, worse" in html
    assert render(store) == html


def test_a_report_without_tasks_has_no_section(build, tmp_path: Path):
    html = render(build.store(tmp_path / "run", build.quickstart()[:3]))
    assert 'id="tasks"' not in html


def test_hostile_names_are_escaped(build, records, tmp_path: Path):
    for record in records:
        record.quality.tasks = [score("<script>alert(1)</script>", 0.5, data="<b>\x1b[31m")]
    html = render(build.store(tmp_path / "run", records))
    assert "<script>alert(1)" not in html
    assert "<b>\x1b" not in html


def test_flips_are_columns_of_the_table_and_notes_of_the_section(build, records):
    """Equal scores, other answers: one of two questions, and both changed from right to wrong."""
    dense, wanda, shortgpt = records
    dense.quality.tasks = [score("boolq", 0.5, answers="0 1", correct="10")]
    wanda.quality.tasks = [score("boolq", 0.5, answers="1 1", correct="01")]
    shortgpt.quality.tasks = [score("boolq", 0.5)]  # as in records of older versions
    rows = build_table(records, 0.95)
    assert [row["task_flips_percent"] for row in rows] == [0, 50, None]
    assert [row["task_correct_flips_percent"] for row in rows] == [0, 100, None]
    assert [row["tasks_flips_percent"] for row in rows] == [0, 50, None]
    shown = {column.key: column for column in main_table.COLUMNS}["tasks_flips_percent"]
    assert (shown.head, shown.unit, shown.better) == ("Flips", "percent", -1)
    (table,) = tasks.section(build.given(records))
    notes = {row["name"].split()[0]: row["cells"][1]["note"] for row in table["rows"]}
    assert notes["wanda"] == "50.0 % flipped; +0.0, within error"
    assert notes["shortgpt"] == "+0.0, within error"
    moved = wanda.model_copy(deep=True)
    moved.quality.tasks[0].data_commit = "another"
    assert build_table([dense, moved], 0.95)[1]["task_flips_percent"] is None


def test_every_task_has_a_plot_with_intervals_and_denses_line(build, records):
    [model] = task_plots.section(build.given(records))
    assert [one.caption for one in model["figures"]] == list(DENSE)
    boolq = model["figures"][0]
    # 60 +- 1.96 x 1 point
    assert "dense 60.0 (58.0 to 62.0)" in boolq.desc
    assert boolq.svg.count('class="range') == 3
    assert boolq.svg.count('class="dense"') == 1
    assert ">acc, %</text>" in boolq.svg


def test_scores_without_an_error_have_no_plot(build, records):
    for record in records:
        for one in record.quality.tasks:
            one.metrics[0].stderr = None
    [model] = task_plots.section(build.given(records))
    assert model["figures"] == []
    assert build_table(records, 0.95)


def test_the_card_says_why_choices_ran_alone(build, records):
    records[0].quality.tasks[0].one_by_one = "the model takes no mask"
    told = [dict(card["tasks"]) for card in cards.section(build.given(records))]
    texts = [text for card in told for text in card.values()]
    assert [text for text in texts if "each choice ran alone: the model takes no mask" in text]
    assert len([text for text in texts if "ran alone" in text]) == 1
