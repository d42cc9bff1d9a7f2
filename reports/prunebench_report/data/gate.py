"""The quality gate: how much of the dense model's quality a cell must keep, and whether it does.

Everything that a report says about the gate comes from `passes_gate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TASKS_RECOVERY = "tasks_recovery_percent"
PERPLEXITY_RECOVERY = "recovery_percent"
GENERATION_RECOVERY = "generation_recovery_percent"

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


def passes_gate(
    row: Mapping[str, Any], gate: float, generation_gate: float | None = None
) -> bool | None:
    """Whether a row of the table keeps the share ``gate`` of dense quality, e.g. 0.95.

    If perplexity decides, every protocol must pass. If a suite names a ``generation_gate``, what
    the model writes must pass that too. None if a figure that decides is missing, unless another
    one has failed already.
    """
    verdicts = [_passes(row, gate)]
    if generation_gate is not None:
        written = row.get(GENERATION_RECOVERY)
        verdicts.append(None if written is None else bool(written >= 100 * generation_gate))
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _passes(row: Mapping[str, Any], gate: float) -> bool | None:
    if judged_by_tasks(row):
        judged = [row.get(TASKS_RECOVERY)]
    else:
        # The protocol names a measured perplexity even if its value is infinite, i.e. missing.
        measured = [
            key
            for key, value in row.items()
            if value is not None and re.fullmatch(r"perplexity_protocol(_\d+)?", key)
        ]
        judged = [
            row.get(key.replace("perplexity_protocol", PERPLEXITY_RECOVERY)) for key in measured
        ]
    # A missing figure leaves the question open: the cell has neither passed nor failed.
    known = [recovery for recovery in judged if recovery is not None]
    if not known or len(known) < len(judged):
        return None
    return bool(min(known) >= 100 * gate)
