"""What run B lost against run A, with intervals: whether a loss is beyond a limit, for CI.

A loss is relative, and positive if B is worse: 0.01 is one per cent. Perplexity and bytes count as
B / A - 1, the mean of task scores and a speed-up over dense as 1 - B / A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prunebench.measure.quality.task_scores import task_recovery
from prunebench_report.data.columns import Row, numbered
from prunebench_report.data.quality import perplexities
from prunebench_report.data.tasks import suite_tasks, task_key, tasks_by_key
from prunebench_report.data.uncertainty import (
    LARGEST_EXPONENT,
    UNKNOWN,
    Interval,
    Z,
    mean_error,
    paired_difference,
    score_recovery_error,
)
from prunebench_report.text import finite

if TYPE_CHECKING:
    from prunebench.record.quality import Perplexity
    from prunebench.record.record import Record

Verdict = Literal["within", "beyond", "cannot tell"]


class Loss(NamedTuple):
    """One figure of one cell; ``value`` (None: not measured in B) and the interval are shares."""

    cell: str
    figure: str
    value: float | None
    interval: Interval
    limit: float

    @property
    def verdict(self) -> Verdict:
        """'beyond' if the whole interval is beyond the limit, 'within' if none of it is.

        An interval that is unknown proves nothing.
        """
        low, high = self.interval
        if low is not None and low > self.limit:
            return "beyond"
        if high is not None and high <= self.limit:
            return "within"
        return "cannot tell"


class Side(NamedTuple):
    """A cell of one run: its record and its row of the table."""

    record: Record
    row: Row


def losses(name: str, a: Side, b: Side, limits: Mapping[str, float]) -> list[Loss]:
    """The losses of one cell, for each quantity in ``limits`` (see `QUANTITIES`)."""
    return [
        Loss(name, figure, value, interval, limit)
        for quantity, limit in limits.items()
        for figure, value, interval in QUANTITIES[quantity](a, b)
    ]


Found = Iterator[tuple[str, float | None, Interval]]


def _quality(a: Side, b: Side) -> Found:
    """Each perplexity of the same tokens, and the mean of the task scores."""
    for one in perplexities(a.record):
        if not finite(one.perplexity):
            continue
        figure = f"perplexity {one.corpus}"
        same = [new for new in perplexities(b.record) if new.tokens_sha256 == one.tokens_sha256]
        if not same:
            yield figure, None, UNKNOWN
        elif finite(same[0].perplexity) is None:
            # A model that computes NaN or infinity has lost everything.
            yield figure, math.inf, Interval(math.inf, math.inf)
        else:
            yield figure, *_perplexity_loss(one, same[0])
    yield from _tasks(a.record, b.record)


def _perplexity_loss(a: Perplexity, b: Perplexity) -> tuple[float, Interval]:
    more = b.nll - a.nll
    value = math.expm1(min(more, LARGEST_EXPONENT))
    if (paired := paired_difference(b, a)) is not None:
        _, margin = paired
    elif more == 0:
        margin = 0.0
    elif a.nll_stderr is None or b.nll_stderr is None:
        return value, UNKNOWN
    else:
        margin = Z * math.hypot(a.nll_stderr, b.nll_stderr)
    if abs(more) + margin > LARGEST_EXPONENT:
        return value, UNKNOWN
    return value, Interval(math.expm1(more - margin), math.expm1(more + margin))


def _tasks(a: Record, b: Record) -> Found:
    """The mean over the tasks of score / score in A; a task that B lacks leaves it open."""
    after = tasks_by_key(b)
    if not suite_tasks(a):
        return
    ratios, errors = [], []
    for old in suite_tasks(a):
        new = after.get(task_key(old))
        higher = old.headline_metric.higher_is_better
        value = None if new is None else new.value
        ratio = task_recovery(value, old.value, higher_is_better=higher)
        if new is None or ratio is None:
            yield "mean of tasks", None, UNKNOWN
            return
        parts = [side.quality.parts(one) for side, one in ((b, new), (a, old)) if side.quality]
        ratios.append(ratio)
        # Equal answers are the same model: nothing is left to chance.
        errors.append(0.0 if parts[0] == parts[1] else score_recovery_error(new, old, *parts))
    mean, error = math.fsum(ratios) / len(ratios), mean_error(errors)
    interval = UNKNOWN if error is None else Interval(1 - mean - Z * error, 1 - mean + Z * error)
    yield "mean of tasks", 1 - mean, interval


def _speed(a: Side, b: Side) -> Found:
    """The speed-up over dense of each shape: milliseconds of two runs are not compared."""
    if a.record.cell.method.name == "dense":  # it is what the others are compared with
        return
    after = dict(_speedups(b.row))
    for protocol, (old, old_low, old_high) in _speedups(a.row):
        figure = f"speed-up ({protocol})"
        # Device and execution form are part of the protocol: others cannot be compared.
        if protocol not in after:
            yield figure, None, UNKNOWN
            continue
        value, low, high = after[protocol]
        interval = UNKNOWN
        if low and high and old_low and old_high:
            interval = _ratio_loss((old, old_low, old_high), (value, low, high))
        yield figure, 1 - value / old, interval


def _ratio_loss(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The interval of 1 - b / a, if the logarithms of both have independent errors."""
    ratio = math.log(b[0] / a[0])
    down = math.hypot(math.log(b[0] / b[1]), math.log(a[2] / a[0]))
    up = math.hypot(math.log(b[2] / b[0]), math.log(a[0] / a[1]))
    return Interval(-math.expm1(ratio + up), -math.expm1(ratio - down))


def _speedups(row: Row) -> Iterator[tuple[str, tuple[float, float | None, float | None]]]:
    """By protocol: the speed-up and the ends of its interval."""
    index = 0
    while numbered("latency_protocol", index) in row:
        value = row[numbered("inter_token_speedup", index)]
        if value is not None and value > 0:
            low = row.get(numbered("inter_token_speedup_low", index))
            high = row.get(numbered("inter_token_speedup_high", index))
            yield row[numbered("latency_protocol", index)], (value, low, high)
        index += 1


def _counted(key: str, figure: str) -> Callable[[Side, Side], Found]:
    def found(a: Side, b: Side) -> Found:
        before, after = a.row.get(key), b.row.get(key)
        if before and after is not None:
            value = after / before - 1
            yield figure, value, Interval(value, value)

    return found


QUANTITIES: Mapping[str, Callable[[Side, Side], Found]] = {
    "quality": _quality,
    "speed": _speed,
    "memory": _counted("memory_bytes", "weights in memory"),
    "disk": _counted("disk_bytes", "files"),
}
"""What can have a limit."""
