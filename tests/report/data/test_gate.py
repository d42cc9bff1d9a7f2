"""The quality gate: one rule for cells, for the mean of several seeds, and for everything shown."""

from __future__ import annotations

import math

import pytest

from prunebench_report import load, load_table, main_table, summary
from prunebench_report.data.gate import gate_verdict, passes_gate, quality_key
from prunebench_report.sections import main_table as table_section
from prunebench_report.sections import verdict

PERPLEXITY = {"perplexity": 20.0, "perplexity_protocol": "p", "recovery_percent": 96.0}
TASKS = {"tasks_run": 2, "tasks_questions": 100, "tasks_recovery_percent": 90.0}


@pytest.mark.parametrize(
    ("row", "judged", "passes"),
    [
        (PERPLEXITY, "recovery_percent", True),
        (PERPLEXITY | {"recovery_percent": 94.9}, "recovery_percent", False),
        (PERPLEXITY | TASKS, "tasks_recovery_percent", False),
        (PERPLEXITY | TASKS | {"tasks_questions": 99}, "recovery_percent", True),
        (TASKS | {"tasks_questions": 5}, "tasks_recovery_percent", False),
        (TASKS | {"tasks_recovery_percent": None}, "tasks_recovery_percent", None),
        ({}, "recovery_percent", None),
    ],
    ids=[
        "perplexity decides",
        "just below",
        "tasks decide",
        "too few questions",
        "no perplexity, so tasks decide",
        "a score is missing",
        "nothing was measured",
    ],
)
def test_tasks_decide_if_they_asked_enough_and_perplexity_otherwise(row, judged, passes):
    assert quality_key(row) == judged
    assert passes_gate(row, 0.95) is passes


@pytest.mark.parametrize(("second", "passes"), [(95.0, True), (94.0, False), (None, None)])
def test_every_protocol_must_pass(second, passes):
    row = PERPLEXITY | {"perplexity_protocol_2": "q", "recovery_percent_2": second}
    assert passes_gate(row, 0.95) is passes


def test_an_infinite_perplexity_is_no_reason_to_judge_by_few_questions(build):
    dense, pruned = build.quickstart()[:2]
    pruned.quality.perplexity[0].perplexity = pruned.quality.perplexity[0].nll = math.inf
    row = build.given([dense, pruned]).table[1] | TASKS | {"tasks_questions": 5}
    assert quality_key(row) == "recovery_percent"
    assert passes_gate(row, 0.05) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict", "passes"),
    [
        (95.0, 99.0, "passed", True),
        (94.9, 99.0, "cannot tell", None),
        (90.0, 95.0, "cannot tell", None),
        (90.0, 94.9, "failed", False),
        (None, None, "passed", True),  # records of older versions have no interval
    ],
)
@pytest.mark.parametrize("key", ["recovery_percent", "tasks_recovery_percent"])
def test_a_gate_inside_the_interval_cannot_be_told(key, low, high, verdict, passes):
    row = (PERPLEXITY if key == "recovery_percent" else TASKS) | {
        key: 95.0,
        f"{key}_low": low,
        f"{key}_high": high,
    }
    assert gate_verdict(row, 0.95) == verdict
    assert passes_gate(row, 0.95) is passes


def test_the_interval_of_every_protocol_counts():
    row = PERPLEXITY | {
        "perplexity_protocol_2": "q",
        "recovery_percent_2": 96.0,
        "recovery_percent_low_2": 93.0,
        "recovery_percent_high_2": 99.0,
    }
    assert gate_verdict(row, 0.95) == "cannot tell"
    assert gate_verdict(row | {"recovery_percent": 90.0}, 0.95) == "failed"
    assert gate_verdict(row | {"recovery_percent": None}, 0.95) is None


@pytest.mark.parametrize("gate", [0.966, 0.968])
def test_all_outputs_say_that_they_cannot_tell(build, tmp_path, gate):
    """wanda at 10 % keeps 96.7 %, give or take 0.2."""
    name = "wanda sparsity=0.1"
    given = build.given(build.quickstart(), gate=gate)
    assert {row["name"]: row["gate_verdict"] for row in given.table}[name] == "cannot tell"
    assert {one.key: one for one in verdict.section(given)}["speed"].figure == "unsure"
    shown = next(row for row in table_section.section(given)["rows"] if row["name"] == name)
    assert "at the gate, cannot tell" in {cell["also"] for cell in shown["cells"]}
    assert not any(cell["below"] or cell["greyed"] for cell in shown["cells"])
    folder = build.store(tmp_path / "run", build.quickstart(), gate=gate).folder
    marked = next(row for row in summary(load(folder)).rows if row[0] == name)
    assert any(value.endswith(" ?") for value in marked)


@pytest.mark.parametrize(("gate", "passes"), [(0.96, True), (0.98, False)])
def test_all_outputs_agree_on_who_passes(build, tmp_path, gate, passes):
    """wanda at 10 % keeps 96.7 % of dense quality."""
    name = "wanda sparsity=0.1"
    records = build.quickstart()
    given = build.given(records, gate=gate)
    assert {row["name"]: row["gate_passed"] for row in given.table}[name] is passes
    speed = {one.key: one for one in verdict.section(given)}["speed"]
    assert ("No pruned cell keeps" not in speed.text) is passes
    shown = next(row for row in table_section.section(given)["rows"] if row["name"] == name)
    assert any(cell["below"] for cell in shown["cells"]) is not passes
    assert any(cell["greyed"] for cell in shown["cells"]) is not passes
    folder = build.store(tmp_path / "run", records, gate=gate).folder
    assert load_table(folder).set_index("name")["gate_passed"][name] == passes
    marked = next(row for row in summary(load(folder)).rows if row[0] == name)
    assert any(value.endswith(" <") for value in marked) is not passes
    assert name in main_table(load(folder), "latex")
