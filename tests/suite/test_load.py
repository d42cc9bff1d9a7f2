"""Suites as they are read: names, defaults, lists that fan out, files beside the suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunebench.errors import PrunebenchError
from prunebench.experiment.measures import LatencySpec
from prunebench.plugin.host import load_plugins
from prunebench.suite.load import load_suite
from prunebench.suite.source import shipped
from prunebench.suite.yaml import parse


def test_shipped_quickstart_is_the_documented_grid():
    suite = load_suite("quickstart", registry=load_plugins())
    assert [method.label for method in suite.methods] == [
        "dense",
        "dense",
        "random sparsity=0.5",
        "magnitude sparsity=0.5",
        "wanda sparsity=0.5",
        "sparsegpt sparsity=2:4",
        "shortgpt ratio=0.1",
        "blockpruner count=2",
        "llm-pruner ratio=0.25",
    ]
    assert suite.treatments[-1].recovery.label == "lora batch_size=2 learning_rate=0.001"
    assert [model.name for model in suite.models] == ["smollm2-135m-instruct"]
    assert suite.calibration[0].split == "calibration"
    assert suite.perplexity[0].split == "evaluation"
    assert suite.latency == (
        LatencySpec(prompt=64, new_tokens=10, batch_size=1, min_rounds=6, min_time_s=3.0),
    )
    assert suite.time_limit_s == 3600


def test_every_shipped_suite_is_named_like_its_file():
    assert {"quickstart", "smoke", "standard", "papers/wanda"} <= shipped().keys()
    for name, path in shipped().items():
        assert parse(path.read_text(encoding="utf-8"), name).data["name"] == name.replace("/", "-")


def test_options_are_complete_and_what_was_given_is_the_label(load, minimal):
    dense, magnitude = load(minimal).methods
    assert dense.options == {}
    assert magnitude.options == {"sparsity": 0.5, "mode": "clean"}
    assert magnitude.label == "magnitude"
    assert (magnitude.distribution, magnitude.version) == ("dist", "1.0")


def test_unquoted_n_m_is_a_pattern(load, calibrated):
    suite = load(calibrated.replace("0.5", "2:4"))
    assert suite.methods[1].options == {"sparsity": "2:4"}


def test_option_lists_fan_out_in_order(load, minimal):
    suite = load(
        minimal.replace(
            "- magnitude", "- magnitude: {sparsity: [0.6, 2:4], mode: [clean, reference]}"
        )
    )
    assert [
        (method.options["sparsity"], method.options["mode"]) for method in suite.methods[1:]
    ] == [
        (0.6, "clean"),
        (0.6, "reference"),
        ("2:4", "clean"),
        ("2:4", "reference"),
    ]


@pytest.mark.parametrize(
    ("written", "layers"),
    [("[1, 2]", [[1, 2]]), ("[[1, 2], [3]]", [[1, 2], [3]]), ("[]", [[]]), ("null", [None])],
)
def test_an_option_that_is_a_list_fans_out_by_a_list_of_lists(load, calibrated, written, layers):
    suite = load(
        calibrated.replace("- wanda: {sparsity: 0.5}", f"- shortgpt: {{layers: {written}}}")
    )
    assert [method.options["layers"] for method in suite.methods[1:]] == layers


def test_protocol_lists_fan_out(load, calibrated):
    text = calibrated.replace("windows: 16", "windows: [8, 16]").replace(
        "length: 128", "length: [64, 128]"
    )
    suite = load(text + "profile: {latency: {batch_size: [1, 4], prompt: [16, 32]}}\n")
    assert [spec.windows for spec in suite.calibration] == [8, 16]
    assert [spec.length for spec in suite.perplexity] == [64, 128]
    assert [(shape.prompt, shape.batch_size) for shape in suite.latency] == [
        (16, 1),
        (16, 4),
        (32, 1),
        (32, 4),
    ]


@pytest.mark.parametrize(
    ("profile", "shapes"), [("", 1), ("profile: {latency: null}", 0), ("profile: {latency: []}", 0)]
)
def test_latency_is_timed_unless_the_suite_says_no(load, minimal, profile, shapes):
    assert len(load(minimal + profile).latency) == shapes


def test_several_dtypes_are_several_models(load, minimal):
    suite = load(
        minimal.replace(
            "smollm2-135m-instruct", "{model: org/m, name: m, dtype: [float32, bfloat16]}"
        )
    )
    assert [(model.name, model.dtype) for model in suite.models] == [
        ("m float32", "float32"),
        ("m bfloat16", "bfloat16"),
    ]
    assert [model.location for model in suite.models] == ["org/m", "org/m"]


def test_local_files_are_relative_to_the_suite(registry, tmp_path, calibrated, monkeypatch):
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "text.txt").write_text("Some text.\n", encoding="utf-8")
    (folder / "s.yaml").write_text(
        calibrated.replace("boolq-passages", "text.txt"), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    suite = load_suite("suites/s.yaml", registry=registry)
    assert suite.calibration[0].corpus.path == str(folder / "text.txt")
    assert (suite.calibration[0].split, suite.perplexity[0].split) == ("all", "all")
    with pytest.raises(
        PrunebenchError, match=r"^--set calibration\.corpus=text\.txt: "
    ):  # not beside the working folder
        load_suite("suites/s.yaml", registry=registry, overrides=["calibration.corpus=text.txt"])


def test_a_token_file_needs_no_sampler(load, calibrated, tmp_path):
    (tmp_path / "tokens.npy").write_bytes(b"\x93NUMPY")  # looked into by the cell, not by the suite
    suite = load(
        calibrated.replace(
            "calibration: {corpus: boolq-passages", "calibration: {corpus: tokens.npy"
        )
    )
    assert suite.calibration[0].sampler == "as-is"


def test_the_text_is_kept_verbatim(load, minimal):
    text = minimal + "# a comment: ü\n"
    assert load(text).text == text


def test_a_shipped_suite_wins_over_a_file_without_a_suffix(
    registry, tmp_path, minimal, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text(minimal, encoding="utf-8")
    assert load_suite("quickstart", registry=load_plugins()).name == "quickstart"
    assert load_suite("quickstart.yaml", registry=registry).name == "mini"
    Path("plain").write_text(minimal, encoding="utf-8")
    assert load_suite("plain", registry=registry).name == "mini"


@pytest.mark.parametrize("sign", ["\\n", "\\N", "\\L", "\\x1b"])
def test_a_name_with_a_line_break_stays_in_its_line(load, minimal, sign):
    with pytest.raises(PrunebenchError) as caught:
        load(f'{minimal}\n"seed{sign}s": 1\n')
    (line,) = str(caught.value).splitlines()
    assert re.match(r"s\.yaml:\d+: seed.+s: unknown key", line)
    assert line.isprintable()
