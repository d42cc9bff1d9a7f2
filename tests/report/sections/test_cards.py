"""A card holds what the record of its cell holds."""

from __future__ import annotations

from prunebench.experiment.plugins import AllocationRef, RecoveryRef
from prunebench.experiment.text import CalibrationSpec, CorpusRef
from prunebench_report import render
from prunebench_report.sections import cards


def card(build, records, name):
    return next(one for one in cards.section(build.given(records)) if one["name"] == name)


def test_a_card_holds_what_the_record_holds(build):
    found = card(build, build.quickstart(), "wanda sparsity=2:4")
    assert ("Pattern 2:4", "violated by 0 of 26,542,080 groups") in found["audit"]
    assert ("Prunable weights", "106,168,320 of 106,168,320") in found["audit"]
    assert found["heatmap"]["title"] == "Weights that are zero or cut off, by layer and linear"
    assert found["quality"][0]["protocol"].startswith(
        "boolq-passages validation, 16 windows of 1024 tokens"
    )
    assert found["floors"][0]["bytes"] == "538 MB weights + 6.60 MB KV cache"
    assert [one["name"] for one in found["phases"]] == [
        "fetch",
        "load",
        "prune",
        "audit",
        "perplexity",
        "latency",
    ]
    assert [row[0] for row in found["speed"][0]["rows"]][
        -1
    ] == "Inter-token latency of dense, interleaved"
    assert "load_average" in dict(found["provenance"])
    calibration = ("Calibration", "boolq-passages train, concatenated, 32 windows of 512 tokens")
    assert calibration in found["method"]


def test_an_allocation_is_shown_with_its_shares(build, tmp_path):
    owl = AllocationRef(
        name="owl", distribution="prunebench", version="0.1.0", options={"spread": 0.08}
    )
    cell = build.cell("wanda", sparsity=0.5).model_copy(update={"allocation": owl})
    record = build.record(cell, 27.0, 1.1)
    record.method_notes["allocation"] = {"mean_share": 0.5, "layer_shares": [0.4321, 0.5679]}
    page = render(build.store(tmp_path, [build.record(build.cell("dense"), 25.0, 1.0), record]))
    for words in (
        "wanda sparsity=0.5 allocation=owl",
        "Allocation options",
        "spread = 0.08",
        "0.4321",
    ):
        assert words in page


def test_a_recovery_on_instruction_data_names_its_prompt(build):
    data = CalibrationSpec(
        corpus=CorpusRef(name="alpaca-cleaned"),
        split="train",
        sampler="examples",
        windows=64,
        length=256,
        prompt="alpaca",
    )
    lora = RecoveryRef(name="lora", distribution="prunebench", version="0.1.0", data=data)
    cell = build.cell("wanda", sparsity=0.5).model_copy(update={"recovery": lora})
    found = card(
        build,
        [build.record(build.cell("dense"), 25.0, 1.0), build.record(cell, 27.0, 1.1)],
        "wanda sparsity=0.5 + lora",
    )
    text = "alpaca-cleaned train, prompt alpaca, loss on answer, 64 windows of 256 tokens"
    assert ("Recovery text", text) in found["method"]
