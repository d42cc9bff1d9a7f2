"""A method's own calibration: published recipes use different text, and a suite can follow them."""

from __future__ import annotations

import pytest

from prunebench.errors import PrunebenchError
from prunebench.suite.plan import plan

SUITE = """\
name: own
models: smollm2-135m-instruct
methods:
  - wanda
  - shortgpt: {ratio: 0.5, calibration: OWN}
calibration: {corpus: boolq-passages, split: evaluation, windows: 4, length: 16}
"""


def cells(load, registry, own, text=SUITE):
    return [
        cell for cell in plan(load(text.replace("OWN", own)), registry).cells if cell.calibration
    ]


def test_keys_left_out_are_as_in_the_suite(load, registry):
    wanda, shortgpt = cells(load, registry, "{windows: 2}")
    assert (wanda.calibration.windows, wanda.calibration.split) == (4, "evaluation")
    assert (shortgpt.calibration.windows, shortgpt.calibration.length) == (2, 16)
    assert (shortgpt.calibration.corpus, shortgpt.calibration.split) == (
        wanda.calibration.corpus,
        "evaluation",
    )
    assert shortgpt.method.options["ratio"] == 0.5
    assert "calibration" not in shortgpt.method.options


def test_another_corpus_brings_its_own_split(load, registry):
    _, shortgpt = cells(load, registry, "{corpus: boolq-passages, windows: 2}")
    assert shortgpt.calibration.split == "calibration"


def test_lists_fan_out_and_decide_the_identity(load, registry):
    found = cells(load, registry, "{windows: [2, 3]}")
    assert [cell.calibration.windows for cell in found] == [4, 2, 3]
    assert len({cell.id for cell in found}) == 3


def test_a_suite_without_calibration_needs_no_other(load, registry):
    text = "".join(
        line
        for line in SUITE.splitlines(keepends=True)
        if "wanda" not in line and not line.startswith("cal")
    )
    [shortgpt] = cells(load, registry, "{corpus: boolq-passages, windows: 2, length: 8}", text)
    assert shortgpt.calibration.length == 8


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("{window: 2}", r"5: methods\.shortgpt\.calibration\.window: unknown key 'window'"),
        (
            "{corpus: nothing}",
            r"5: methods\.shortgpt\.calibration\.corpus: unknown corpus 'nothing'",
        ),
        ("7", r"5: methods\.shortgpt\.calibration"),
    ],
)
def test_wrong_keys_are_named(load, registry, own, said):
    with pytest.raises(PrunebenchError, match=said):
        load(SUITE.replace("OWN", own))


def test_a_method_that_reads_no_text_takes_no_calibration(load):
    with pytest.raises(PrunebenchError, match="'magnitude' looks at no text"):
        load(
            SUITE.replace(
                "shortgpt: {ratio: 0.5, calibration: OWN}", "magnitude: {calibration: {windows: 2}}"
            )
        )
