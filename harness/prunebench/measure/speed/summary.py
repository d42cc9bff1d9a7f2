"""Summarise raw samples in a few numbers, and compare two interleaved series by a paired ratio.

Imports no torch, so that the report and the engine can use it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunebench.record.speed import Ratio, Summary


def summary(samples: Sequence[float]) -> Summary:
    """Order statistics of ``samples`` in their own unit; percentiles by linear interpolation.

    Raises ValueError if there is no sample.
    """
    if not len(samples):
        raise ValueError("no samples to summarise")
    values = np.asarray(samples, dtype=np.float64)
    low, median, p90, p99, high = (
        float(value) for value in np.percentile(values, (0, 50, 90, 99, 100))
    )
    return Summary(
        count=len(values),
        minimum=low,
        median=median,
        mean=float(values.mean()),
        p90=p90,
        p99=p99,
        maximum=high,
    )


def paired_ratio(
    dense: Sequence[float], pruned: Sequence[float], seed: int = 0, resamples: int = 2000
) -> Ratio:
    """How many times faster ``pruned`` is than ``dense``, both in seconds per round.

    The estimate is the median of the ratios dense / pruned of each round, so anything that slows
    both models of a round cancels. The interval is the percentile bootstrap of that median at 95 %
    (Efron and Tibshirani 1993, chapter 13). It needs six rounds or more: with n rounds the whole
    range of the ratios contains the true median with probability 1 - 2^(1 - n), 94 % for five.

    Raises ValueError if the series are empty, differ in length, or contain a time of zero or less.
    """
    above = np.asarray(dense, dtype=np.float64)
    below = np.asarray(pruned, dtype=np.float64)
    if above.shape != below.shape or not above.size:
        raise ValueError(f"rounds do not pair up: {above.size} dense, {below.size} pruned")
    if not (np.all(above > 0) and np.all(below > 0)):
        raise ValueError("every round needs a time above zero")
    ratios = above / below  # [rounds]
    # [resamples, rounds]: which rounds each resample consists of, drawn with replacement
    draws = np.random.default_rng(seed).integers(0, ratios.size, size=(resamples, ratios.size))
    medians = np.median(ratios[draws], axis=1)  # [resamples]
    low, high = (float(value) for value in np.percentile(medians, (2.5, 97.5)))
    return Ratio(estimate=float(np.median(ratios)), low=low, high=high, rounds=int(ratios.size))
