"""Intervals of recoveries: as wide as the error is, and narrow because both read the same text."""

from __future__ import annotations

import math
import random

import pytest

from prunebench.record.quality import Perplexity, TaskMetric, TaskResult
from prunebench_report.data.uncertainty import (
    UNKNOWN,
    around,
    mean_error,
    paired_nll,
    perplexity_recovery_interval,
    score_recovery_error,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042)]
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, rel=0.01)


def of_windows(build, sums, tail=0):
    tokens = 1023 * len(sums) - (1023 - (tail - 1) if tail else 0)
    nll = math.fsum(sums) / tokens
    return build.perplexity(math.exp(nll)).model_copy(
        update={
            "windows": len(sums),
            "tail_tokens": tail,
            "tokens_scored": tokens,
            "nll": nll,
            "window_nll": sums,
        }
    )


def test_the_error_is_that_of_the_differences_between_windows(build):
    """Differences of 1, 2, 3 and 4 nats a window: mean 2.5, deviation 1.29, error 0.645."""
    dense = of_windows(build, [2000.0, 3000.0, 2500.0, 2800.0])
    pruned = of_windows(build, [2001.0, 3002.0, 2503.0, 2804.0])
    difference, error = paired_nll(pruned, dense)
    assert difference * 1023 == pytest.approx(-2.5)
    assert error * 1023 == pytest.approx(0.6455, abs=1e-4)
    low, high = perplexity_recovery_interval(pruned, dense)
    assert low < math.exp(difference) < high


def test_a_shorter_last_window_counts_by_its_tokens(build):
    """The same loss per token everywhere: no error, whatever the lengths."""
    dense = of_windows(build, [1023.0, 1023.0, 99.0], tail=100)
    pruned = of_windows(build, [2046.0, 2046.0, 198.0], tail=100)
    difference, error = paired_nll(pruned, dense)
    assert (difference, error) == pytest.approx((-1.0, 0.0), abs=1e-12)


def test_the_interval_covers_the_truth_19_times_in_20(build):
    """Windows differ by 10 %, their differences by much less: pairing must not claim too much."""
    generator = random.Random(7)
    covered = 0
    for _ in range(400):
        hard = [generator.gauss(2500, 250) for _ in range(8)]
        pruned = [one + generator.gauss(100, 20) for one in hard]
        mine, dense = of_windows(build, pruned), of_windows(build, hard)
        low, high = perplexity_recovery_interval(mine, dense)
        covered += low <= math.exp(-100 / 1023) <= high
    assert 0.93 <= covered / 400 <= 0.97


@pytest.mark.parametrize("windows", [None, [1.0], []])
def test_without_windows_there_is_no_interval(build, windows):
    one: Perplexity = build.perplexity(30.0).model_copy(update={"window_nll": windows})
    assert perplexity_recovery_interval(one, build.perplexity(25.0)) == UNKNOWN
    assert perplexity_recovery_interval(build.perplexity(25.0), one) == UNKNOWN


def test_the_record_of_a_run_gives_every_cell_an_interval_and_dense_none(build):
    rows = build.given(build.quickstart()).table
    for row in rows:
        low, high = row["recovery_percent_low"], row["recovery_percent_high"]
        if row["method"] == "dense":
            assert (low, high) == (None, None)
        else:
            assert low < row["recovery_percent"] < high


def score(correct, value=None, stderr=0.1, **more):
    value = correct.count("1") / len(correct) if value is None else value
    metric = TaskMetric(metric="acc", filter="none", value=value, stderr=stderr)
    return TaskResult(
        task="boolq",
        asked=True,
        data="hub",
        num_fewshot=0,
        version="1",
        samples=len(correct) or 100,
        samples_total=None,
        metrics=[metric],
        headline="acc",
        seeds={},
        harness="0.4",
        correct=correct or None,
        **more,
    )


def error(one, dense):
    return score_recovery_error(one, dense, [one], [dense])


def test_the_error_of_a_score_shrinks_with_the_questions_that_changed():
    dense = score("1" * 600 + "0" * 400)
    few = score("0" * 10 + "1" * 590 + "1" * 10 + "0" * 390)
    many = score("0" * 200 + "1" * 400 + "1" * 200 + "0" * 200)
    # sqrt(changed answers, and one more each way) / right answers of dense
    assert error(few, dense) == pytest.approx(math.sqrt(22) / 600)
    assert error(many, dense) == pytest.approx(math.sqrt(402) / 600)


def test_sixteen_questions_without_a_change_prove_little():
    same = score("1" * 10 + "0" * 6)
    low, high = around(1.0, error(same, same))
    assert low < 0.8
    assert high > 1.2


@pytest.mark.parametrize("change", [{"correct": ""}, {"data_commit": "other"}, {"value": 0.5}])
def test_without_the_same_answers_the_errors_are_added(change):
    """Also if the score is not the share of right answers, as that of some groups."""
    dense, one = score("1100"), score("1010", data_commit=change.get("data_commit"))
    if "correct" in change:
        one = one.model_copy(update={"correct": None})
    assert error(one, dense) == pytest.approx(
        math.hypot(0.2, 0.2) if "value" not in change else error(one, dense)
    )


def test_a_mean_with_an_unknown_error_has_none():
    assert mean_error([0.03, 0.04]) == pytest.approx(0.025)
    assert mean_error([0.03, None]) is None
    assert mean_error([]) is None
    assert around(0.1, 0.2)[0] == 0.0
