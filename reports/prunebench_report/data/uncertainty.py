"""How sure a recovery is: 95 % intervals of a share of dense quality.

Both models read the same windows and answer the same questions, so they are compared window by
window and question by question: what makes a text hard for both is no error of their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prunebench.record.quality import Perplexity, TaskResult

Z = 1.96
"""Half the width of a 95 % interval, in standard errors, of a normal distribution."""
# Two scores are the same if rounding alone tells them apart.
_ROUNDING = 1e-6
LARGEST_EXPONENT = 700.0
"""exp of more than this overflows a float."""


class Interval(NamedTuple):
    low: float | None
    high: float | None


UNKNOWN = Interval(None, None)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; ``freedom`` is the number of samples - 1.

    Exact for one and two degrees of freedom, otherwise the expansion around the normal quantile
    (Abramowitz and Stegun, 26.7.5), which is right to one per cent.
    """
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z, n = 1.959964, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def paired_nll(one: Perplexity, dense: Perplexity) -> tuple[float, float] | None:
    """(dense - pruned nats per token, its standard error), paired by window.

    The error of a ratio of sums, as of a single perplexity. None if one of the two has no values of
    its windows, or if there is only one window.
    """
    mine, theirs = one.window_nll, dense.window_nll
    if not mine or not theirs or len(mine) != len(theirs) or len(mine) < 2:
        return None
    if len(mine) != one.windows or not all(map(math.isfinite, (*mine, *theirs))):
        return None
    difference = dense.nll - one.nll
    # What is left of each window's difference if every token had the mean difference [windows]
    residuals = [
        (other - own) - difference * count
        for own, other, count in zip(mine, theirs, one.window_tokens, strict=True)
    ]
    count = len(residuals)
    squares = math.fsum(value**2 for value in residuals)
    return difference, math.sqrt(squares * count / (count - 1)) / one.tokens_scored


def paired_difference(one: Perplexity, dense: Perplexity) -> tuple[float, float] | None:
    """(dense - pruned nats per token, half its 95 % interval), paired by window; None as above."""
    found = paired_nll(one, dense)
    return found and (found[0], t_quantile(one.windows - 1) * found[1])


def perplexity_recovery_interval(one: Perplexity, dense: Perplexity) -> Interval:
    """The interval of dense perplexity / perplexity, a share."""
    found = paired_difference(one, dense)
    if found is None:
        return UNKNOWN
    difference, margin = found
    if abs(difference) + margin > LARGEST_EXPONENT:
        return UNKNOWN
    return Interval(math.exp(difference - margin), math.exp(difference + margin))


def score_recovery_error(
    one: TaskResult,
    dense: TaskResult,
    parts: Sequence[TaskResult],
    dense_parts: Sequence[TaskResult],
) -> float | None:
    """The standard error of score / dense score; None if no error is known.

    ``parts`` are the tasks with the answers of both models (`Quality.parts`). Without answers,
    the errors of the two scores are added as if other questions had been asked, which is too much.
    """
    if one.value is None or dense.value is None or one.value <= 0 or dense.value <= 0:
        return None
    mine, theirs = _answers(one, parts), _answers(dense, dense_parts)
    if mine and theirs and len(mine) == len(theirs) and one.data_commit == dense.data_commit:
        return _paired_error(mine, theirs, one.value / dense.value)
    if one.stderr is None or dense.stderr is None:
        return None
    higher = one.headline_metric.higher_is_better
    ratio = one.value / dense.value if higher else dense.value / one.value
    return ratio * math.hypot(one.stderr / one.value, dense.stderr / dense.value)


def _answers(one: TaskResult, parts: Sequence[TaskResult]) -> str | None:
    """Right (1) or wrong (0) for each question; None if their mean is not the score."""
    answers = "".join(part.correct or "" for part in parts)
    if not answers or one.value is None:
        return None
    share = answers.count("1") / len(answers)
    return answers if abs(share - one.value) < _ROUNDING else None


def _paired_error(mine: str, dense: str, ratio: float) -> float:
    """The standard error of a ratio of two numbers of right answers to the same questions.

    The residual of a question is (right - ratio x right of dense). As Bonett and Price (2012) do
    for the difference, one is added to both kinds of changed answers: a few questions that no one
    answered differently do not prove that nothing changed.
    """
    both = sum(a == b == "1" for a, b in zip(mine, dense, strict=True))
    gained = mine.count("1") - both + 1
    lost = dense.count("1") - both + 1
    squares = both * (1 - ratio) ** 2 + gained + lost * ratio**2
    return math.sqrt(squares) / dense.count("1")


def around(value: float | None, error: float | None) -> Interval:
    """``value`` - 1.96 ``error``, but not below zero, to ``value`` + 1.96 ``error``."""
    if value is None or error is None:
        return UNKNOWN
    return Interval(max(0.0, value - Z * error), value + Z * error)


def mean_error(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean of independent values; None if one is not known."""
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return None
    return math.hypot(*known) / len(known)


def percentage(share: float | None) -> float | None:
    return None if share is None else 100 * share
