"""Published against measured: in words, in the page and in the export."""

from __future__ import annotations

import json

import pytest

from prunebench.record.expectations import Expectation
from prunebench.record.quality import TaskMetric, TaskResult
from prunebench_report import export, render
from prunebench_report.sections import published

MINUS = "\N{MINUS SIGN}"


def expect(
    value, cells, *, method="wanda sparsity=0.5", metric="perplexity", tolerance=0.02, **more
):
    corpus = (
        {"corpus": "boolq-passages", "protocol": "sparsegpt", "length": 1024}
        if metric == "perplexity"
        else {}
    )
    return Expectation(
        cells=tuple(cell.id for cell in cells),
        model="smollm2-135m-instruct",
        method=method,
        metric=metric,
        value=value,
        tolerance=tolerance,
        source="A <b>paper</b>, Table 3",
        **corpus | more,
    )


@pytest.fixture
def rows(build):
    def rows(figures, records, missing=()):
        given = build.given(records, expect=tuple(figures), missing=tuple(missing))
        return published.section(given)

    return rows


def seeds(build, values):
    return [
        build.record(build.cell("wanda", seed=seed, sparsity=0.5), value, 1.0)
        for seed, value in enumerate(values)
    ]


def test_the_mean_over_seeds_is_compared_with_the_figure(build, rows):
    records = seeds(build, [50.0, 51.0, 52.0])
    [row] = rows([expect(50.5, [one.cell for one in records])], records)
    assert (row["published"], row["measured"]) == ("50.50", "51.00 ± 1.0 (3 seeds)")
    assert (row["difference"], row["state"], row["agrees"]) == (
        "+0.99 %, higher",
        "agrees within 2 %",
        True,
    )
    assert row["cell"] == f"{records[0].id}-seeds"


def test_cells_that_differ_in_more_than_the_seed_are_not_called_seeds(build, rows):
    records = [
        build.record(build.cell("wanda", seed=seed, sparsity=0.5, mode=mode), 50.0 + seed, 1.0)
        for mode in ("clean", "reference")
        for seed in (0, 1, 2)
    ]
    [row] = rows([expect(50.5, [one.cell for one in records])], records)
    assert row["measured"] == "51.00 ± 0.89 (6 cells: 2 settings, 3 seeds)"
    [row] = rows([expect(50.5, [one.cell for one in records[::3]])], records)
    assert row["measured"] == "50.00 ± 0 (2 cells: 2 settings, 1 seed)"


@pytest.mark.parametrize(
    ("value", "words", "state"),
    [
        (100.0, f"{MINUS}50.0 %, lower", "differs by more than 2 %"),
        (50.0, "= published", "agrees within 2 %"),
        (10.0, "+400 %, higher", "differs by more than 2 %"),
    ],
)
def test_differences_have_a_sign_and_a_word(value, words, state, build, rows):
    [record] = seeds(build, [50.0])
    [row] = rows([expect(value, [record.cell])], [record])
    assert (row["difference"], row["state"]) == (words, state)
    assert row["cell"] == record.id


def test_cells_without_a_result_say_why(build, rows):
    failed = build.failed(build.cell("wanda", sparsity=0.5), "out-of-memory")
    missing = build.cell("wanda", sparsity="2:4")
    figures = [expect(7.0, [failed.cell]), expect(11.0, [missing], method="wanda sparsity=2:4")]
    first, second = rows(figures, [failed], [missing])
    assert (first["state"], second["state"]) == ("out-of-memory", "not run")
    assert (first["measured"], first["difference"], first["agrees"]) == ("n/a", "n/a", None)


def test_another_protocol_is_not_taken_for_the_figures(build, rows):
    [record] = seeds(build, [50.0])
    [row] = rows([expect(50.0, [record.cell], protocol="disp-llm")], [record])
    assert (row["measured"], row["state"]) == ("n/a", "not measured")


def test_dense_comes_first_and_if_it_is_off_the_ratios_to_it_are_compared(build, rows):
    dense = build.record(build.cell("dense"), 10.0, 1.0)
    [wanda] = seeds(build, [20.0])
    figures = [expect(16.0, [wanda.cell]), expect(8.0, [dense.cell], method="dense")]
    first, second = rows(figures, [dense, wanda])
    assert (first["method"], first["note"]) == ("dense", None)
    assert second["note"] == (
        "dense itself is off by +25.0 %, higher; against dense: "
        "2.00\N{MULTIPLICATION SIGN} published, 2.00\N{MULTIPLICATION SIGN} measured"
    )


def test_counts_and_shares_and_ratios(build, rows):
    record = build.record(build.cell("shortgpt", ratio=0.1), 40.0, 1.2)
    total, share = record.audit.parameters, record.audit.removed_share
    figures = [
        expect(total, [record.cell], metric="parameters", tolerance=0.001),
        expect(share, [record.cell], metric="removed_share"),
        expect(1.2, [record.cell], metric="speedup", tolerance=0.1),
    ]
    found = rows(figures, [record])
    assert [row["difference"] for row in found] == ["= published"] * 3
    assert found[0]["measured"] == f"{total:,}"
    assert found[1]["measured"] == f"{100 * share:.2f} %"
    assert found[2]["measured"] == "1.200\N{MULTIPLICATION SIGN}"


def test_removed_layers_are_those_that_both_removed(build, rows):
    record = build.record(build.cell("shortgpt", ratio=0.1), 40.0, 1.2)
    gone = record.audit.removed_layers
    assert len(gone) == 3 and not {97, 98} & set(gone)
    figures = [
        expect(3, [record.cell], metric="removed_layers", layers=tuple(gone)),
        expect(4, [record.cell], metric="removed_layers", layers=(*gone[:2], 97, 98)),
    ]
    first, second = rows(figures, [record])
    assert (first["measured"], first["agrees"]) == ("3 of 3", True)
    assert (second["published"], second["measured"]) == ("4 of 4", "2 of 4")
    assert (second["agrees"], second["difference"]) == (False, f"{MINUS}50.0 %, lower")
    assert second["metric"] == f"removed layers among {gone[0]}, {gone[1]}, 97, 98"


def test_the_page_has_the_section_with_everything_escaped_and_none_without_figures(build, tmp_path):
    [record] = seeds(build, [50.0])
    expected = (expect(50.5, [record.cell]),)
    page = render(build.store(tmp_path / "run", [record], expect=expected))
    assert '<section id="published"' in page
    assert '<a href="#published">' in page
    assert "A &lt;b&gt;paper&lt;/b&gt;, Table 3" in page
    assert "Sun" not in page
    assert 'id="published"' not in render(build.store(tmp_path / "other", [record]))


def test_the_export_has_a_set_of_columns_for_each_figure(build, tmp_path):
    records = seeds(build, [50.0, 60.0])
    cells = [one.cell for one in records]
    expected = (expect(50.5, cells), expect(0.0, cells[:1], metric="removed_share"))
    made = build.store(tmp_path / "run", records, expect=expected)
    first, second = json.loads(export(made.folder, "json"))
    assert (
        first["published_metric"]
        == "perplexity, boolq-passages, windows of 1024, sparsegpt protocol"
    )
    assert (first["published_value"], first["published_measured"]) == (50.5, 50.0)
    assert first["published_difference"] == pytest.approx(-0.0099, abs=1e-4)
    assert (first["published_agrees"], second["published_agrees"]) == (True, False)
    assert (first["published_metric_2"], first["published_agrees_2"]) == (
        "share of parameters removed",
        True,
    )
    assert second["published_metric_2"] is None
    assert "published_metric" not in json.loads(export(other(build, made), "json"))[0]


def other(build, made):
    return build.store(made.folder.parent / "plain", made.records()[0]).folder


def scored(name, value):
    metric = TaskMetric(metric="acc", filter="none", value=value, stderr=0.01)
    return TaskResult(
        task=name,
        asked=True,
        data="hub",
        num_fewshot=0,
        version="1",
        samples=100,
        samples_total=100,
        metrics=[metric],
        headline="acc",
        seeds={},
        harness="0.4.13",
    )


def test_scores_of_tasks_are_in_per_cent(build, rows):
    [record] = seeds(build, [50.0])
    record.quality.tasks = [scored("boolq", 0.7), scored("piqa", 0.8)]
    figures = [
        expect(70.0, [record.cell], metric="boolq"),
        expect(75.0, [record.cell], metric="tasks-mean"),
        expect(64.0, [record.cell], metric="tasks-mean", tasks=("piqa",)),
        expect(60.0, [record.cell], metric="tasks-mean", tasks=("piqa", "arc_easy")),
    ]
    found = rows(figures, [record])
    assert [row["measured"] for row in found] == ["70.00", "75.00", "80.00", "n/a"]
    assert [row["metric"] for row in found][:3] == [
        "boolq, %",
        "mean of the tasks, %",
        "mean of piqa, %",
    ]
    assert found[2]["difference"] == "+25.0 %, higher"
