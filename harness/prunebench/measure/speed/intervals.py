"""Confidence intervals of a median that hold for few samples: order statistics, no resampling.

The interval between the k-th smallest and the k-th largest of n independent samples contains the
median with a probability that is known exactly, whatever the distribution: 1 - 2 P(B < k), with B
binomial (n, 1/2). Between two samples it would hold with at least 95 %, but with 99 % of eight, so
it is interpolated. No torch here: the report uses these functions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

CONFIDENCE = 0.95


def fewest_samples(miss: float) -> int:
    """The smallest number of samples whose minimum lies below the median but for ``miss``.

    The minimum of n samples exceeds the median with probability 2**-n. A two-sided 95 % interval
    misses on each side with 0.025, so it needs six samples.
    """
    count = 1
    while 2.0**-count > miss:
        count += 1
    return count


def median_interval(
    samples: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided interval of the median of ``samples``; None if there are too few of them.

    Each end is a `lower_bound` or an `upper_bound` that misses with (1 - ``confidence``) / 2.
    """
    miss = (1 - confidence) / 2
    low, high = lower_bound(samples, miss), upper_bound(samples, miss)
    return None if low is None or high is None else (low, high)


def lower_bound(samples: Sequence[float], miss: float) -> float | None:
    """A value that exceeds the median of the samples' distribution with probability ``miss``.

    No single order statistic misses with exactly ``miss``, so the bound lies between the two that
    enclose it, interpolated as Hettmansperger and Sheather (1986, equation 2.2) do: nearly exact
    for symmetric distributions, and never outside the two. None if ``samples`` has fewer than
    `fewest_samples` of ``miss``: then even the minimum misses more often.
    """
    count = len(samples)
    if count < fewest_samples(miss):
        return None
    ordered = sorted(samples)
    rank = _rank(count, miss)
    outer = _misses(count, rank)  # of the rank-th smallest, at most `miss`
    inner = _misses(count, rank + 1)  # of the next one, above `miss`
    if rank + 1 > count - rank:  # the next one already lies above the middle: do not cross it
        return ordered[rank - 1]
    share = (miss - outer) / (inner - outer)
    weight = (count - rank) * share / (rank + (count - 2 * rank) * share)
    return ordered[rank - 1] + weight * (ordered[rank] - ordered[rank - 1])


def upper_bound(samples: Sequence[float], miss: float) -> float | None:
    """A value that the median of the samples' distribution exceeds with probability ``miss``."""
    bound = lower_bound([-sample for sample in samples], miss)
    return None if bound is None else -bound


def _rank(count: int, miss: float) -> int:
    """The largest rank (1 is the minimum) whose order statistic misses with at most ``miss``."""
    rank = 1
    while rank + 1 <= count and _misses(count, rank + 1) <= miss:
        rank += 1
    return rank


def _misses(count: int, rank: int) -> float:
    """P(the ``rank``-th smallest of ``count`` samples is above the median): fewer lie below."""
    return float(sum(comb(count, below) for below in range(rank)) / 2**count)
