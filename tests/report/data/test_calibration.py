"""What the calibration changes: cells that are equal but for calibration and seed."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest

from prunebench.record.record import Record
from prunebench_report.data.calibration import calibration_groups, calibration_spreads

DENSE = 25.0
# Perplexities by corpus and seed.
WANDA = {"c4": [26.0, 27.0, 28.0], "alpaca": [40.0, 41.0, 45.0]}


def calibrated(cell, corpus: str = "c4", **changes):
    """The cell with its calibration text changed."""
    ref = cell.calibration.corpus.model_copy(update={"name": corpus})
    spec = cell.calibration.model_copy(update={"corpus": ref, **changes})
    return cell.model_copy(update={"calibration": spec})


@pytest.fixture
def records(build) -> list[Record]:
    return [
        build.record(build.cell("dense"), DENSE, 1.0),
        *[
            build.record(
                calibrated(build.cell("wanda", seed=seed, sparsity=0.5), corpus), value, 1.0
            )
            for corpus, values in WANDA.items()
            for seed, value in enumerate(values)
        ],
        build.record(build.cell("magnitude", sparsity=0.5), 90.0, 1.0),
    ]


def test_cells_are_together_if_only_calibration_and_seed_differ(build) -> None:
    def cell(corpus, seed=0, **given):
        return calibrated(build.cell("wanda", seed=seed, **given), corpus)

    cells = [
        build.cell("dense"),
        build.cell("magnitude", seed=0),
        build.cell("magnitude", seed=1),
        cell("c4", sparsity=0.5),
        cell("c4", sparsity=0.6),
        cell("alpaca", sparsity=0.5),
        cell("c4", seed=1, sparsity=0.6),
        cell("c4", sparsity=0.7),
    ]
    found = calibration_groups(cells)
    assert found == [[cells[3], cells[5]], [cells[4], cells[6]]]


def test_seeds_that_draw_the_same_windows_are_no_other_calibration(build) -> None:
    seeds = [
        calibrated(build.cell("wanda", seed=seed, sparsity=0.5), sampler="consecutive")
        for seed in (0, 1)
    ]
    assert calibration_groups(seeds) == []
    assert calibration_groups([*seeds, calibrated(seeds[0], windows=7)]) != []


def test_the_spread_over_calibrations_and_over_seeds(build, records) -> None:
    [spread] = calibration_spreads(build.given(records))
    assert (spread.method, spread.figure) == (
        "wanda sparsity=0.5",
        "perplexity recovery, boolq-passages",
    )
    shares = {name: [100 * DENSE / value for value in values] for name, values in WANDA.items()}
    assert [sample.name for sample in spread.samples] == ["c4", "alpaca"]
    for sample in spread.samples:
        assert sample.values == pytest.approx(shares[sample.name])
    means = [fmean(values) for values in shares.values()]
    assert spread.mean == pytest.approx(fmean(means))
    assert (spread.lowest.name, spread.highest.name) == ("alpaca", "c4")
    assert spread.over_calibrations == pytest.approx(stdev(means))
    within = [stdev(values) for values in shares.values()]
    assert spread.over_seeds == pytest.approx((fmean(one**2 for one in within)) ** 0.5)
    assert (spread.done, spread.planned) == (6, 6)


def test_one_calibration_has_a_spread_over_seeds_only_and_one_seed_over_calibrations_only(
    build, records
) -> None:
    [seeds] = calibration_spreads(build.given(records[:4]))
    assert (seeds.over_calibrations, seeds.done) == (None, 3)
    assert seeds.over_seeds == pytest.approx(stdev(100 * DENSE / v for v in WANDA["c4"]))
    [texts] = calibration_spreads(build.given([records[0], records[1], records[4]]))
    assert (texts.over_seeds, texts.done) == (None, 2)
    assert texts.over_calibrations == pytest.approx(stdev([100 * 25 / 26, 100 * 25 / 40]))


def test_deviations_over_seeds_are_weighted_by_what_each_calibration_knows(build, records) -> None:
    [spread] = calibration_spreads(build.given(records[:6]))  # three seeds of one, two of the other
    three = stdev(100 * DENSE / v for v in WANDA["c4"])
    two = stdev(100 * DENSE / v for v in WANDA["alpaca"][:2])
    assert spread.over_seeds == pytest.approx(((2 * three**2 + two**2) / 3) ** 0.5)


def test_cells_that_failed_or_are_missing_count_as_planned(build, records) -> None:
    dense, *wanda = records[:7]
    failed = build.failed(wanda[1].cell)
    [spread] = calibration_spreads(
        build.given([dense, wanda[0], failed, *wanda[3:]], missing=(wanda[2].cell,))
    )
    assert (spread.done, spread.planned) == (4, 6)
    assert [len(sample.values) for sample in spread.samples] == [1, 3]


def test_a_plan_that_gives_every_method_one_sample_of_one_text_has_none(build) -> None:
    assert calibration_spreads(build.given(build.quickstart())) == []


def test_a_plan_without_any_result_has_none(build, records) -> None:
    given = build.given([], missing=tuple(one.cell for one in records))
    assert calibration_spreads(given) == []


def test_calibrations_are_called_by_what_differs(build, records) -> None:
    base = build.cell("wanda", sparsity=0.5)
    cells = [
        calibrated(base, windows=8),
        calibrated(base, windows=16),
        calibrated(base, "alpaca", windows=16, split="validation"),
    ]
    dense = records[0]
    given = build.given([dense, *(build.record(cell, 30.0, 1.0) for cell in cells)])
    [spread] = calibration_spreads(given)
    assert [sample.name for sample in spread.samples] == [
        "c4, 8 windows",
        "c4, 16 windows",
        "alpaca, 16 windows",
    ]


def test_a_large_run_has_only_the_methods_that_are_shown_in_detail(build, records) -> None:
    pairs = [
        build.record(
            build.cell("wanda", seed=seed, sparsity=0.6 + number / 1000), 90.0 + number, 1.0
        )
        for number in range(70)
        for seed in (0, 1)
    ]
    given = build.given([*records, *pairs])
    methods = {spread.method for spread in calibration_spreads(given)}
    assert "wanda sparsity=0.5" in methods
    assert 1 < len(methods) <= 40
    assert len(calibration_groups(given.plan.cells)) == 71
