"""`quality.metrics`: syntax, fan-out, text, identity, schema, bad input."""

from __future__ import annotations

import pytest
from pydantic import Field

from prunebench.errors import PrunebenchError
from prunebench.plugin.api.metric import Metric
from prunebench.plugin.api.options import Options
from prunebench.plugin.registry import PluginEntry
from prunebench.suite.json_schema import json_schema
from prunebench.suite.plan import plan

SUITE = """\
name: s
models: smollm2-135m-instruct
methods: [magnitude]
quality:
  perplexity: {corpus: boolq-passages, windows: 4, length: 128}
  metrics: METRICS
profile: null
"""
WITHOUT = SUITE.replace("  metrics: METRICS\n", "")


class Reads(Metric):
    name = "reads"
    higher_is_better = True
    needs_text = True

    class Options(Options):
        among: int = Field(1, ge=1)

    def measure(self, model, tokenizer, context):
        raise NotImplementedError


class Counts(Reads):
    name = "counts"
    needs_text = False


@pytest.fixture
def registry(registry):
    for kind in (Reads, Counts):
        registry["metric"][kind.name] = PluginEntry("metric", kind.name, kind, "dist", "1.0", "")
    return registry


@pytest.fixture
def cells(load, registry):
    def cells(metrics: str, text: str = SUITE, *overrides: str):
        return plan(load(text.replace("METRICS", metrics), *overrides), registry).cells

    return cells


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("reads", ["reads"]),
        ("null", []),
        ("[reads, counts]", ["reads", "counts"]),
        (
            "[{reads: {among: [1, 5]}}, reads]",
            ["reads among=1", "reads among=5"],
        ),  # the last is the first once more
        ("[{reads: {data: {corpus: boolq-passages, length: 64}}}, reads]", ["reads", "reads"]),
    ],
)
def test_every_cell_has_them_in_the_order_written(cells, written, labels):
    for cell in cells(written):
        assert [ref.label for ref in cell.metrics] == labels


def test_the_text_is_the_first_perplexitys_or_its_own(cells):
    own = (
        "[{reads: {data: {corpus: boolq-passages, split: calibration, windows: 2}}}, reads, counts]"
    )
    cell = cells(own, SUITE, "quality.perplexity.tail=true")[0]
    mine, shared, none = cell.metrics
    assert (mine.data.split, mine.data.windows, mine.data.length, mine.data.fewer) == (
        "calibration",
        2,
        512,
        False,
    )
    assert shared.data == cell.perplexity[0].model_copy(update={"tail": False})
    assert none.data is None
    assert mine.options == {"among": 1}


def test_a_metric_decides_the_id_and_its_absence_none(cells, load, registry):
    def ids(*arguments):
        return [cell.id for cell in cells(*arguments)]

    plain = [cell.id for cell in plan(load(WITHOUT), registry).cells]
    assert ids("[]") == ids("null") == plain
    several = [
        ids(written)[0]
        for written in (
            "reads",
            "{reads: {among: 2}}",
            "counts",
            "{reads: {data: {corpus: boolq-passages}}}",
        )
    ]
    assert len({plain[0], *several}) == 5
    assert ids("{reads: {among: 1}}") == ids("reads")  # 1 is the default
    before = registry["metric"]["reads"]
    registry["metric"]["reads"] = PluginEntry("metric", "reads", Reads, "dist", "2.0", "")
    assert ids("reads")[0] != several[0]
    registry["metric"]["reads"] = before


BAD = {
    "[raeds]": ("quality.metrics[0]", "unknown metric 'raeds'", "did you mean 'reads'"),
    "{reads: {amnog: 2}}": ("quality.metrics", "unknown option 'amnog'", "did you mean 'among'"),
    "{reads: {among: 0}}": ("among", "greater than or equal to 1", ""),
    "{reads: {data: {corpus: nowhere}}}": ("data.corpus", "unknown corpus 'nowhere'", "boolq-passages"),
    "{reads: {data: {windows: 4}}}": ("data", "'corpus' is missing", ""),
    "{reads: {data: {corpus: boolq-passages, split: dev}}}": ("data.split", "has no split 'dev'", ""),
    "{counts: {data: {corpus: boolq-passages}}}": ("data", "'counts' looks at no text", "leave `data` out"),
    "{reads: 7}": ("reads", "options are a mapping", ""),
    "{reads: {among: []}}": ("among", "an empty list makes no cells", ""),
    "3": ("quality.metrics", "3 is no metric", "kl-divergence"),
}  # fmt: skip


@pytest.mark.parametrize("written", BAD)
def test_problems_name_file_line_and_key(cells, written):
    with pytest.raises(PrunebenchError) as caught:
        cells(written)
    said = str(caught.value)
    assert "s.yaml:6" in said
    assert "\n" not in said
    assert all(words in said for words in BAD[written]), said


def test_a_metric_without_any_text_is_refused(cells):
    with pytest.raises(
        PrunebenchError,
        match=r"'reads' needs text, and neither it nor quality\.perplexity names one",
    ):
        cells("reads", SUITE, "quality.perplexity=null")
    assert cells("counts", SUITE, "quality.perplexity=null")


def test_a_wrong_perplexity_is_the_only_problem(cells):
    with pytest.raises(PrunebenchError) as caught:
        cells("reads", SUITE, "quality.perplexity.corpus=nowhere")
    assert "needs text" not in str(caught.value)


def test_the_json_schema_has_metrics_with_options_and_text(registry):
    schema = json_schema(registry)
    names, counts, reads = schema["$defs"]["metric"]["anyOf"]
    assert names == {"enum": ["counts", "reads"]}
    options = reads["properties"]["reads"]["anyOf"][0]["properties"]
    assert options["data"]["anyOf"][0] == {"$ref": "#/$defs/TextEntry"}
    assert options["among"]["anyOf"][0]["minimum"] == 1
    assert "data" not in counts["properties"]["counts"]["anyOf"][0]["properties"]
    one, several, none = schema["$defs"]["QualityEntry"]["properties"]["metrics"]["anyOf"]
    assert several["items"] == one == {"$ref": "#/$defs/metric"}
    assert none == {"type": "null"}
    assert schema["$defs"]["TextEntry"]["properties"]["corpus"]["examples"] == ["boolq-passages"]


def test_a_metric_of_tasks_needs_some(cells, registry):
    kind = type("Answers", (Counts,), {"name": "answers", "needs_tasks": True})
    registry["metric"]["answers"] = PluginEntry("metric", "answers", kind, "dist", "1.0", "")
    with pytest.raises(PrunebenchError, match="'answers' looks at the answers to tasks"):
        cells("[answers]")
    text = SUITE.replace("METRICS", "METRICS\n  tasks: arc_easy")
    assert cells("[answers]", text)[0].metrics[0].name == "answers"
