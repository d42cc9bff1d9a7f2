"""The metric of a task that tables show, and how much of the dense model's score is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prunebench.record.quality import TaskResult

NORMALISED = frozenset({"hellaswag", "arc_challenge", "openbookqa"})
"""Tasks for which papers report accuracy normalised by the length of the choices.

As in the zero-shot tables of LLM-Pruner (arXiv:2305.11627) and its successors; for the other tasks
they report plain accuracy.
"""

_ACCURACIES = ("acc", "exact_match", "em")


def headline(task: str, metrics: Sequence[str]) -> str | None:
    """The one of ``metrics`` that tables show for ``task``; None if there are no metrics.

    `acc_norm` for tasks in `NORMALISED`, else `acc`, else the first one that is an accuracy by its
    name, else the first one.
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
    """Share of dense quality that is kept: score / dense, or dense / score if lower is better.

    None if a figure is missing, or if the denominator is zero or negative.
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


class Flips(NamedTuple):
    """Shares of the questions of a task, in [0, 1]; None if they are not known."""

    answers: float | None
    """The answer is another one than the dense model's."""
    correct: float | None
    """A right answer became a wrong one, or the reverse: the flips of arXiv:2407.09141."""


def flips(parts: Sequence[TaskResult], dense: Sequence[TaskResult]) -> Flips:
    """How often a model answers otherwise than the dense one, over all questions of ``parts``.

    ``parts`` and ``dense`` are results of the same tasks (`Quality.parts`). None if one of them has
    other questions or no answers, as in records of older versions.
    """
    return Flips(
        _changed(
            [(one.task, (one.answers or "").split()) for one in parts],
            [(one.task, (one.answers or "").split()) for one in dense],
        ),
        _changed(
            [(one.task, one.correct or "") for one in parts],
            [(one.task, one.correct or "") for one in dense],
        ),
    )


def _changed(
    ours: Sequence[tuple[str, Sequence[str]]], theirs: Sequence[tuple[str, Sequence[str]]]
) -> float | None:
    """The share of answers that differ; each side has the answers of its tasks by name."""
    sizes = [(name, len(answers)) for name, answers in ours]
    if not sizes or not all(size for _, size in sizes):
        return None
    if sizes != [(name, len(answers)) for name, answers in theirs]:
        return None
    pairs = [
        mine != other
        for (_, answers), (_, others) in zip(ours, theirs, strict=True)
        for mine, other in zip(answers, others, strict=True)
    ]
    return sum(pairs) / len(pairs)


def z_score(
    value: float | None, stderr: float | None, dense: float | None, dense_stderr: float | None
) -> float | None:
    """(score - dense) / sqrt(stderr^2 + dense_stderr^2): the z of a two-proportion test.

    Both models answer the same questions, so the true error of the difference is smaller, and the
    test is conservative. None if a figure is missing or both errors are zero.
    """
    if value is None or stderr is None or dense is None or dense_stderr is None:
        return None
    error = math.hypot(stderr, dense_stderr)
    return (value - dense) / error if error > 0 else None
