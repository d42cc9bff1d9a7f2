"""The loop over a cell's measures: what is kept, what is reused, and how progress adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.cell.partial_results import PartialResults
from prunebench.cell.quality import Measure, Progress, _run_all
from prunebench.record.quality import MetricFigure, MetricResult
from tiny import tiny_model


def result(name: str, reason: str | None = None) -> MetricResult:
    value = None if reason else 1.0
    figure = MetricFigure(name=name, unit="", higher_is_better=True, value=value, reason=reason)
    return MetricResult(
        metric=name, label=name, distribution="d", version="1", figures=[figure], seconds=0.0
    )


def measure(name: str, calls: list[str], reason: str | None = None) -> Measure:
    def run(progress: Progress) -> list[MetricResult]:
        calls.append(name)
        progress(1, 2)
        progress(2, 2)
        return [result(name, reason)]

    return Measure(name, MetricResult, run)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.partial.json"


def kept(path: Path) -> PartialResults:
    results = PartialResults(path)
    results.begin(tiny_model("llama"))
    return results


def test_results_come_in_order_and_progress_is_of_the_whole(path: Path) -> None:
    moved: list[tuple[int, int]] = []
    found = _run_all(
        [measure("one", []), measure("two", [])], kept(path), lambda *step: moved.append(step)
    )
    assert found == [result("one"), result("two")]
    assert moved == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_was_measured_is_not_measured_again(path: Path) -> None:
    calls: list[str] = []
    _run_all([measure("one", calls)], kept(path), lambda *_: None)
    again = kept(path)
    found = _run_all([measure("one", calls), measure("two", calls)], again, lambda *_: None)
    assert found == [result("one"), result("two")]
    assert calls == ["one", "two"]
    assert again.reused == ["one"]


def test_a_result_without_its_figure_is_measured_again(path: Path) -> None:
    calls: list[str] = []
    _run_all([measure("one", calls, "it failed")], kept(path), lambda *_: None)
    assert _run_all([measure("one", calls)], kept(path), lambda *_: None) == [result("one")]
    assert calls == ["one", "one"]
