"""The quality gate: how much of the dense model's quality a cell must keep, and whether it does.

Everything that a report says about the gate comes from `gate_verdict`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

TASKS_RECOVERY = "tasks_recovery_percent"
PERPLEXITY_RECOVERY = "recovery_percent"
GENERATION_RECOVERY = "generation_recovery_percent"

Verdict = Literal["passed", "failed", "cannot tell"]
PASSED: Verdict = "passed"
FAILED: Verdict = "failed"
CANNOT_TELL: Verdict = "cannot tell"

LEAST_QUESTIONS = 100
"""Fewest questions per task that the gate accepts.

The standard error of an accuracy is at most 0.5 / sqrt(questions): five points at 100 questions.
"""


def judged_by_tasks(row: Mapping[str, Any]) -> bool:
    """Whether tasks decide: each has `LEAST_QUESTIONS`, or no perplexity was measured."""
    if not row.get("tasks_run"):
        return False
    enough = (row.get("tasks_questions") or 0) >= LEAST_QUESTIONS
    return enough or row.get("perplexity_protocol") is None


def quality_key(row: Mapping[str, Any]) -> str:
    """The column that the gate judges, in per cent of dense quality."""
    return TASKS_RECOVERY if judged_by_tasks(row) else PERPLEXITY_RECOVERY


def quality(row: Mapping[str, Any]) -> Any:
    """The value of that column; None if it is not available."""
    return row.get(quality_key(row))


def gate_verdict(
    row: Mapping[str, Any], gate: float, generation_gate: float | None = None
) -> Verdict | None:
    """Whether a row of the table keeps the share ``gate`` of dense quality, e.g. 0.95.

    If perplexity decides, every protocol must pass. If a suite names a ``generation_gate``, what
    the model writes must pass that too. A recovery passes or fails if its whole interval does;
    `CANNOT_TELL` if the gate is inside the interval. None if a figure that decides is missing,
    unless another one has failed already.
    """
    verdicts = [_judge(row, key, gate) for key in _judged_keys(row)] or [None]
    if generation_gate is not None:
        verdicts.append(_judge(row, GENERATION_RECOVERY, generation_gate))
    if FAILED in verdicts:
        return FAILED
    # A missing figure leaves the question open, whatever the others say.
    if None in verdicts:
        return None
    return CANNOT_TELL if CANNOT_TELL in verdicts else PASSED


def passes_gate(
    row: Mapping[str, Any], gate: float, generation_gate: float | None = None
) -> bool | None:
    """The same in short; None also if nobody can tell."""
    verdict = gate_verdict(row, gate, generation_gate)
    return verdict == PASSED if verdict in {PASSED, FAILED} else None


def gate_columns(
    row: Mapping[str, Any], gate: float, generation_gate: float | None = None
) -> dict[str, Any]:
    """The verdict as columns of the table."""
    return {
        "gate_verdict": gate_verdict(row, gate, generation_gate),
        "gate_passed": passes_gate(row, gate, generation_gate),
    }


def interval_of(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The 95 % interval of the column ``key``, which may have a number; None if unknown."""
    name, number = _split(key)
    low, high = row.get(f"{name}_low{number}"), row.get(f"{name}_high{number}")
    return None if low is None or high is None else (low, high)


def _split(key: str) -> tuple[str, str]:
    """'recovery_percent_2' is 'recovery_percent' and '_2'."""
    number = re.search(r"_\d+$", key)
    return (key[: number.start()], number.group()) if number else (key, "")


def _judge(row: Mapping[str, Any], key: str, gate: float) -> Verdict | None:
    value = row.get(key)
    if value is None:
        return None
    # Without an interval, as in older records, the value itself decides.
    low, high = interval_of(row, key) or (value, value)
    limit = 100 * gate
    return PASSED if low >= limit else FAILED if high < limit else CANNOT_TELL


def _judged_keys(row: Mapping[str, Any]) -> list[str]:
    """The recoveries that decide: over tasks, or of every perplexity that was measured."""
    if judged_by_tasks(row):
        return [TASKS_RECOVERY]
    # The protocol names a measured perplexity even if its value is infinite, i.e. missing.
    return [
        key.replace("perplexity_protocol", PERPLEXITY_RECOVERY)
        for key, value in row.items()
        if value is not None and re.fullmatch(r"perplexity_protocol(_\d+)?", key)
    ]
