from __future__ import annotations

import pytest

from prunebench.record.quality import MetricFigure, MetricResult
from prunebench_report.data.gate import passes_gate

KEY = "generation_recovery_percent"


def wrote(build, cell, share, *, generative=True):
    """The record of a cell whose metric says how much of what it wrote is right."""
    record = build.record(cell, 22.0, 1.0)
    figure = MetricFigure(
        name="arithmetic-and-copy", unit="share", higher_is_better=True, value=share, reason=None
    )
    record.quality.metrics = [
        MetricResult(
            metric="arithmetic-and-copy",
            label="arithmetic-and-copy",
            distribution="prunebench",
            version="0.1.0",
            figures=[figure],
            seconds=1.0,
            generative=generative,
        )
    ]
    return record


@pytest.fixture
def cells(build):
    from prunebench.experiment.plugins import MetricRef

    ref = MetricRef(name="arithmetic-and-copy", distribution="prunebench", version="0.1.0")
    return [
        build.cell(name, **options).model_copy(update={"metrics": (ref,)})
        for name, options in (("dense", {}), ("shortgpt", {"ratio": 0.2}))
    ]


def test_the_share_of_dense_is_a_column(build, cells):
    records = [wrote(build, cells[0], 0.8), wrote(build, cells[1], 0.2)]
    rows = {row["method"]: row for row in build.given(records).table}
    assert rows["dense"][KEY] == pytest.approx(100)
    assert rows["shortgpt"][KEY] == pytest.approx(25)


def test_metrics_that_judge_no_writing_do_not_count(build, cells):
    records = [
        wrote(build, cells[0], 0.8, generative=False),
        wrote(build, cells[1], 0.2, generative=False),
    ]
    assert all(row[KEY] is None for row in build.given(records).table)


@pytest.mark.parametrize(
    ("perplexity", "written", "generation_gate", "passes"),
    [
        (99.0, 25.0, None, True),
        (99.0, 25.0, 0.9, False),
        (99.0, 93.0, 0.9, True),
        (90.0, 93.0, 0.9, False),
        (99.0, None, 0.9, None),
        (90.0, None, 0.9, False),
    ],
)
def test_a_cell_passes_only_if_it_passes_every_gate(perplexity, written, generation_gate, passes):
    row = {"perplexity_protocol": "p", "recovery_percent": perplexity, KEY: written}
    assert passes_gate(row, 0.95, generation_gate) is passes


def test_the_report_judges_by_the_suites_generation_gate(build, cells):
    records = [wrote(build, cells[0], 0.8), wrote(build, cells[1], 0.2)]
    given = build.given(records, gate=0.5)
    assert given.row_by_id[cells[1].id]["gate_passed"] is True
    from dataclasses import replace

    strict = replace(given, plan=replace(given.plan, generation_gate=0.9))
    assert strict.row_by_id[cells[1].id]["gate_passed"] is False
