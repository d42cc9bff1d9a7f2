"""Metrics of plugins in the table, the section, the cards, the exports and a comparison."""

from __future__ import annotations

import csv
import io

import pytest

from prunebench.experiment.plugins import MetricRef
from prunebench.record.quality import MetricFigure, MetricResult
from prunebench.record.record import Record
from prunebench_report import compare, export, render
from prunebench_report.data.table import build_table
from prunebench_report.sections import cards, metrics
from prunebench_report.text import MINUS

KL = MetricRef(name="kl", distribution="theirs", version="1.2", options={"chunk": 8})


def figure(name="kl", value=None, unit="nats", higher=False, reason=None):
    return MetricFigure(name=name, unit=unit, higher_is_better=higher, value=value, reason=reason)


def judged(record: Record, *figures: MetricFigure, ref: MetricRef = KL) -> Record:
    result = MetricResult(
        metric=ref.name,
        label=ref.label,
        distribution=ref.distribution,
        version=ref.version,
        text="boolq-passages evaluation",
        windows=4,
        window=512,
        figures=list(figures),
        seconds=1.5,
    )
    cell = record.cell.model_copy(update={"metrics": (*record.cell.metrics, ref)})
    quality = record.quality.model_copy(update={"metrics": [*record.quality.metrics, result]})
    return record.model_copy(update={"cell": cell, "id": cell.id, "quality": quality})


@pytest.fixture
def records(build) -> list[Record]:
    dense, _, _, wanda, *_, shortgpt, _ = build.quickstart()
    return [
        judged(shortgpt, figure(value=0.25), figure("agreement", 0.8125, "share", higher=True)),
        judged(dense, figure(value=0.0), figure("agreement", 1.0, "share", higher=True)),
        judged(
            wanda,
            figure(reason="ValueError: <b>no</b>"),
            figure("agreement", 1.0, "share", higher=True),
        ),
    ]


def test_every_figure_has_columns_and_what_is_missing_its_reason(records):
    shortgpt, dense, wanda = build_table(records, 0.95)
    assert (shortgpt["metric"], shortgpt["metric_unit"], shortgpt["metric_value"]) == (
        "kl",
        "nats",
        0.25,
    )
    assert (shortgpt["metric_2"], shortgpt["metric_higher_is_better_2"]) == ("kl: agreement", True)
    assert shortgpt["metric_recovery_percent_2"] == pytest.approx(81.25)
    assert (
        shortgpt["metric_protocol"]
        == "kl, boolq-passages evaluation, 4 windows of 512 tokens, theirs 1.2"
    )
    assert dense["metric_recovery_percent"] is None  # 0 of 0 is no share
    assert (wanda["metric_value"], wanda["metric_reason"], wanda["metric_value_2"]) == (
        None,
        "ValueError: <b>no</b>",
        1.0,
    )
    assert {row["dense_cell"] for row in (shortgpt, wanda)} == {records[1].id}


def test_a_cell_without_some_figures_does_not_move_the_others(records):
    only = judged(
        records[2].model_copy(
            update={"cell": records[2].cell.model_copy(update={"metrics": (), "seed": 7})}
        )
    )
    short = judged(
        only.model_copy(
            update={
                "quality": only.quality.model_copy(update={"metrics": []}),
                "cell": only.cell.model_copy(update={"metrics": ()}),
            }
        ),
        figure("agreement", 0.5, "share", higher=True),
    )
    *_, last = build_table([*records, short], 0.95)
    assert (last["metric"], last["metric_value"], last["metric_2"], last["metric_value_2"]) == (
        None,
        None,
        "kl: agreement",
        0.5,
    )


def test_records_without_metrics_have_no_such_columns_and_no_section(build, tmp_path):
    plain = build.quickstart()
    assert not [key for key in build_table(plain, 0.95)[0] if key.startswith("metric")]
    assert metrics.section(build.given(plain)) == []
    assert "Further metrics" not in render(build.store(tmp_path / "run", plain))


def test_the_section_says_the_difference_from_dense_with_sign_and_in_words(build, records):
    [table] = metrics.section(build.given(records))
    assert [(head["name"], head["about"]) for head in table["heads"]] == [
        ("kl", "nats, lower is better"),
        ("agreement", "kl\n%, higher is better"),
    ]
    dense, shortgpt, wanda = table["rows"]
    assert dense["dense"] and [cell["note"] for cell in dense["cells"]] == [None, None]
    assert [(cell["text"], cell["note"], cell["tone"]) for cell in shortgpt["cells"]] == [
        ("0.2500", "+0.250, worse", "worse"),
        ("81.25", f"{MINUS}18.8, worse, recovery 81.2 %", "worse"),
    ]
    assert [(cell["text"], cell["note"]) for cell in wanda["cells"]] == [
        ("n/a", "ValueError: <b>no</b>"),
        ("100.0", "= dense"),
    ]
    assert table["protocols"] == [
        "kl, boolq-passages evaluation, 4 windows of 512 tokens, theirs 1.2"
    ]


def test_the_page_escapes_what_plugins_say_and_the_card_has_all(build, records, tmp_path):
    hostile = MetricRef(name="<script>alert(1)</script>", distribution="x", version="1")
    named = [judged(record, figure(hostile.name, 1.0), ref=hostile) for record in records]
    page = render(build.store(tmp_path / "run", named))
    assert 'href="#metrics"' in page
    assert "<script>alert" not in page
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in page
    found = {card["name"]: dict(card["metrics"]) for card in cards.section(build.given(named))}
    assert found["wanda sparsity=0.5"]["kl"].startswith(
        "kl not available: ValueError: <b>no</b>, agreement 100.0 % ("
    )


def test_exports_have_the_columns(build, records, tmp_path):
    folder = build.store(tmp_path / "run", records).folder
    [first, *_] = csv.DictReader(io.StringIO(export(folder, "csv")))
    assert (first["metric_value"], first["metric_value_2"]) == ("0.25", "0.8125")
    export(folder, "sqlite", tmp_path / "run.sqlite")
    assert (tmp_path / "run.sqlite").stat().st_size > 0


def test_a_comparison_names_a_change_and_does_not_judge_it(build, records, tmp_path):
    a = build.store(tmp_path / "a", records).folder
    changed = records[0].model_copy(deep=True)
    changed.quality.metrics[0].figures[0].value = 0.2
    b = build.store(tmp_path / "b", [changed, *records[1:]]).folder
    found = compare(a, b)
    cells = {row["name"]: row["cells"][found["heads"].index("kl")] for row in found["rows"]}
    assert cells["shortgpt ratio=0.1"]["values"] == "0.2500 nats to 0.2000 nats"
    assert cells["shortgpt ratio=0.1"]["note"] == f"{MINUS}0.0500, not judged"
    assert cells["dense"]["significant"] is False
    assert cells["wanda sparsity=0.5"]["significant"] is None


def test_seeds_are_pooled(build):
    several = [
        judged(
            build.record(build.cell("random", seed=seed, sparsity=0.5), 30.0, 1.0),
            figure(value=value),
        )
        for seed, value in enumerate((0.2, 0.4))
    ]
    [row] = build.given(several).rows
    assert (row["metric"], row["metric_value"]) == ("kl", pytest.approx(0.3))
    assert row["metric_value_sd"] == pytest.approx(0.1414, abs=1e-4)


def test_the_notes_of_a_metric_are_in_its_cells_card(build, records):
    records[0].quality.metrics[0].notes["samples"] = ["a", "b"]
    found = cards.section(build.given(records))[0]["notes"]
    assert ("kl.samples", "a, b") in found
