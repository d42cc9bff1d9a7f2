"""The report's section about drafts: acceptance and our own latencies together."""

from __future__ import annotations

import pytest

import report_builder as build
from prunebench.experiment.plugins import MetricRef
from prunebench.plugin.api.report_section import ReportData
from prunebench.record.quality import MetricFigure, MetricResult
from prunebench_plugins.draft_acceptance import DraftSpeedup, _untimed
from prunebench_report import render
from prunebench_report.sections import plugin_sections

REF = MetricRef(name="draft-acceptance", distribution="prunebench", version="0.1.0")


def accepting(record, rate, accepted):
    """The record with a result of this metric."""
    values = {"draft-acceptance": rate} | {
        f"accepted-{k}": value for k, value in enumerate(accepted, 1)
    }
    result = MetricResult(
        metric=REF.name,
        label=REF.label,
        distribution=REF.distribution,
        version=REF.version,
        figures=[
            MetricFigure(
                name=name,
                unit="",
                higher_is_better=True,
                value=value,
                reason=None if value is not None else "no room for both models",
            )
            for name, value in values.items()
        ],
        seconds=1.0,
    )
    record.quality.metrics.append(result)
    return record


def table_of(records) -> dict[str, list[str]]:
    [found] = plugin_sections.section(build.given(records), [DraftSpeedup])
    assert found["problem"] is None
    _, table = found["blocks"]
    return {name: values for name, *values in table["rows"]}


def test_the_section_has_the_speedup_of_the_best_draft_length_from_our_own_latencies() -> None:
    dense, *_, half, _, _ = build.quickstart()
    counted = [0.6, 0.9, 1.05, 1.1, 1.12, 1.13, 1.14, 1.14]
    accepting(dense, 1.0, [float(k) for k in range(1, 9)])
    accepting(half, 0.6, counted)
    timed = half.speed.latency[0]
    for speedup in (8.0, 1.25):
        timed.inter_token_speedup = timed.inter_token_speedup.model_copy(
            update={"estimate": speedup, "low": speedup - 0.25, "high": speedup + 0.25}
        )
        promised = [(value + 1) / (k / speedup + 1) for k, value in enumerate(counted, 1)]
        best = promised.index(max(promised)) + 1
        ends = [
            f"{(counted[best - 1] + 1) / (best / (speedup + end) + 1):.2f}\N{MULTIPLICATION SIGN}"
            for end in (-0.25, 0.25)
        ]
        found = table_of([dense, half])
        assert list(found) == [build.given([dense, half]).names[half.id]]  # not dense
        assert found[next(iter(found))] == [
            f"{max(promised):.2f}\N{MULTIPLICATION SIGN}",
            " to ".join(ends),
            str(best),
            f"{counted[best - 1] + 1:.2f}",
            "60.0 %",
            f"{1 / speedup:.2f}",
        ]
        assert best == {8.0: 2, 1.25: 1}[speedup]


def test_without_a_speed_or_an_acceptance_the_reason_is_in_its_place() -> None:
    dense, random, magnitude, wanda, *_ = build.quickstart()
    accepting(random, 0.6, [0.6] * 8)
    random.speed.latency[0] = random.speed.latency[0].model_copy(
        update={
            "inter_token_s": None,
            "ttft_s": None,
            "inter_token_speedup": None,
            "ttft_speedup": None,
            "not_measurable": "another process took the cores",
        }
    )
    accepting(magnitude, 0.5, [0.5] * 8)
    magnitude.speed = None
    accepting(wanda, None, [None] * 8)
    found = list(table_of([dense, random, magnitude, wanda]).values())
    assert [row[4] for row in found] == ["60.0 %", "50.0 %", "n/a"]
    assert [row[0] for row in found] == [
        "n/a: another process took the cores",
        "n/a: no latency was measured",
        "n/a: no acceptance was measured",
    ]


def test_a_time_that_is_no_evidence_promises_nothing() -> None:
    dense, *_, wanda, half = (build.quickstart()[index] for index in (0, 3, 6))
    section = DraftSpeedup()
    table = build.given([accepting(one, 0.5, [0.5] * 8) for one in (dense, wanda, half)]).table
    rows = [dict(row) for row in table]
    rows[1] |= {"speedup_expected": False, "inter_token_speedup_bound": 1.2}
    rows[2] |= {"disturbed_rounds": None, "cpu_others_share": 0.3}
    _, found = section.build(ReportData(rows, [dense, wanda, half]))
    assert [row[1] for row in found.rows] == [
        "n/a: the measured speed-up has no cause, so it is a measuring fault",
        "n/a: other processes used the cores while it was timed",
    ]


def test_records_without_the_metric_have_no_section(tmp_path) -> None:
    page = render(build.store(tmp_path / "run", build.quickstart()), sections=[DraftSpeedup])
    assert "Pruned models as drafts" not in page


@pytest.mark.parametrize(("share", "evidence"), [(0.0, True), (0.1, True), (0.11, False)])
def test_a_tenth_of_the_cores_may_be_used_by_others(share, evidence) -> None:
    row = {
        "inter_token_speedup": 1.3,
        "disturbed_rounds": None,
        "cpu_others_share": share,
        "speedup_expected": True,
        "inter_token_speedup_bound": 1.2,
    }
    assert (_untimed(row) is None) == evidence
    assert _untimed({**row, "disturbed_rounds": 0}) is None
