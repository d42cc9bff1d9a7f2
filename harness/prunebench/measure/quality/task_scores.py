"""Which of a task's metrics stands in tables, and how much of the dense model's score another model keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMALISED = frozenset({"hellaswag", "arc_challenge", "openbookqa"})
"""Tasks whose accuracy is normalised by the length of the choices in the papers' zero-shot tables (LLM-Pruner,
arXiv:2305.11627; its successors print the same columns); the others stand with plain accuracy."""

_ACCURACIES = ("acc", "exact_match", "em")


def headline(task: str, metrics: Sequence[str]) -> str | None:
    """The one of ``metrics`` that stands for ``task``; None where there is none.

    `acc_norm` for `NORMALISED`, else `acc`, else the first that is an accuracy by its name, else the first of all.
    """
    if task in NORMALISED and "acc_norm" in metrics:
        return "acc_norm"
    if "acc" in metrics:
        return "acc"
    alike = (metric for metric in metrics if metric.startswith(_ACCURACIES) or "accuracy" in metric)
    return next(alike, metrics[0] if metrics else None)


def task_recovery(
    value: float | None, dense: float | None, *, higher_is_better: bool = True
) -> float | None:
    """Share of dense quality that a score keeps: score / dense, or dense / score where lower is better.

    None where a figure is missing or the ratio means nothing (a score of zero or less below it).
    """
    above, below = (value, dense) if higher_is_better else (dense, value)
    if (
        above is None
        or below is None
        or not math.isfinite(above)
        or not math.isfinite(below)
        or below <= 0
    ):
        return None
    return above / below


def z_score(
    value: float | None, stderr: float | None, dense: float | None, dense_stderr: float | None
) -> float | None:
    """(score - dense) / sqrt(stderr^2 + dense stderr^2): a two-proportion z from two standard errors.

    Both models answer the same questions, so that the true error of the difference is smaller: the test errs on the
    side of saying nothing. None where a figure is missing or both errors are zero.
    """
    if value is None or stderr is None or dense is None or dense_stderr is None:
        return None
    error = math.hypot(stderr, dense_stderr)
    return (value - dense) / error if error > 0 else None
