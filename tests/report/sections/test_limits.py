"""What B lost against A: fails only if a loss beyond the limit is sure."""

from __future__ import annotations

import math

import pytest

from prunebench_report.data.losses import Loss
from prunebench_report.data.uncertainty import UNKNOWN, Interval
from prunebench_report.sections.limits import section, table


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.011, 0.02), "beyond"),
        (Interval(0.01, 0.02), "cannot tell"),
        (Interval(-0.01, 0.02), "cannot tell"),
        (Interval(-0.01, 0.01), "within"),
        (Interval(-0.4, -0.2), "within"),
        (Interval(math.inf, math.inf), "beyond"),
        (UNKNOWN, "cannot tell"),
    ],
)
def test_only_a_whole_interval_is_a_verdict(interval, verdict):
    assert Loss("c", "f", 0.015, interval, 0.01).verdict == verdict


def found(build, before, after, limits):
    (loss,) = section(build.given([before]), build.given([after]), limits)
    return loss


def test_a_perplexity_is_compared_window_by_window(build):
    cell = build.cell("wanda", sparsity=0.5)
    before, same = build.record(cell, 20.0, 1.0), build.record(cell, 20.0, 1.0)
    loss = found(build, before, same, {"quality": 0.0})
    assert (loss.value, loss.interval, loss.verdict) == (0, (0, 0), "within")
    worse = build.record(cell, 21.0, 1.0)
    loss = found(build, before, worse, {"quality": 0.01})
    assert loss.value == pytest.approx(0.05)
    # Windows that are all harder by the same amount leave no doubt, whatever one of them costs.
    assert loss.verdict == "beyond"
    assert found(build, worse, before, {"quality": 0.01}).value == pytest.approx(20 / 21 - 1)


def test_without_windows_the_errors_of_both_runs_count(build):
    cell = build.cell("wanda", sparsity=0.5)
    sides = []
    for value in (20.0, 21.0):
        one = build.record(cell, value, 1.0)
        one.quality.perplexity[0] = one.quality.perplexity[0].model_copy(
            update={"window_nll": [], "nll_stderr": 0.03}
        )
        sides.append(one)
    loss = found(build, *sides, {"quality": 0.01})
    margin = 1.96 * math.hypot(0.03, 0.03)
    assert loss.interval == pytest.approx(
        (1.05 * math.exp(-margin) - 1, 1.05 * math.exp(margin) - 1), rel=1e-6
    )
    assert loss.verdict == "cannot tell"


def test_a_speed_up_needs_intervals_that_exclude_the_limit(build):
    cell = build.cell("shortgpt", ratio=0.25)
    before, slower = build.record(cell, 40.0, 1.3), build.record(cell, 40.0, 1.0)
    loss = found(build, before, slower, {"speed": 0.05})
    assert loss.figure == "speed-up (prompt 128, 32 new tokens, batch 1, cpu, eager)"
    assert loss.value == pytest.approx(1 - 1 / 1.3)
    low, high = loss.interval
    assert low < loss.value < high
    assert loss.verdict == "beyond"
    assert found(build, before, build.record(cell, 40.0, 1.23), {"speed": 0.05}).verdict == (
        "cannot tell"
    )
    alone = build.record(cell, 40.0, 1.0, paired=False)
    assert found(build, before, alone, {"speed": 0.05}).interval == UNKNOWN


def test_bytes_are_exact(build):
    cell = build.cell("shortgpt", ratio=0.25)
    before, after = build.record(cell, 40.0, 1.3), build.record(cell, 40.0, 1.3)
    after.audit.memory_bytes = round(1.02 * before.audit.memory_bytes)
    assert found(build, before, after, {"memory": 0.01}).verdict == "beyond"
    assert found(build, before, after, {"memory": 0.03}).verdict == "within"
    assert found(build, before, after, {"disk": 0.0}).verdict == "within"


def test_what_b_no_longer_has_is_never_silent(build):
    cell = build.cell("wanda", sparsity=0.5)
    before = build.record(cell, 20.0, 1.0)
    (failed,) = section(build.given([before]), build.given([build.failed(cell)]), {"quality": 0.5})
    (missing,) = section(build.given([before]), build.given([], missing=(cell,)), {"quality": 0.5})
    assert failed.verdict == missing.verdict == "beyond"
    assert table([failed]) == [[failed.cell, "result", "no result", "0 %", "beyond"]]
    other = build.record(cell, 20.0, 1.0)
    other.quality.perplexity[0] = other.quality.perplexity[0].model_copy(
        update={"tokens_sha256": "0" * 64}
    )
    loss = found(build, before, other, {"quality": 0.5})
    assert (loss.value, loss.verdict) == (None, "cannot tell")
    assert table([loss])[0][2] == "no figure"
    nan = build.record(cell, 20.0, 1.0)
    nan.quality.perplexity[0] = nan.quality.perplexity[0].model_copy(
        update={"perplexity": math.nan, "nll": math.nan}
    )
    assert found(build, before, nan, {"quality": 0.5}).verdict == "beyond"
    # A cell that failed before cannot have lost anything.
    assert section(build.given([build.failed(cell)]), build.given([before]), {"quality": 0}) == []
