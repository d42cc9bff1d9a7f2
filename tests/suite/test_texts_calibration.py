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


def test_rows_instead_of_windows_are_an_experiment_of_their_own(load, registry):
    own = "{sampler: joined-rows, rows: [256, 64]}"
    _, *found = cells(load, registry, own)
    assert [(one.calibration.windows, one.calibration.rows) for one in found] == [
        (None, 256),
        (None, 64),
    ]
    assert [one.calibration.amount for one in found] == [
        "256 rows in windows of 16 tokens",
        "64 rows in windows of 16 tokens",
    ]
    assert len({one.id for one in found}) == 2
    assert "rows" in found[0].calibration.identity()
    windows = cells(load, registry, "{windows: 2}")[1].calibration
    assert "rows" not in windows.identity()
    shared = SUITE.replace("windows: 4", "sampler: joined-rows, rows: 9")
    found = cells(load, registry, "{windows: 2}", shared)
    assert [one.calibration.rows for one in found] == [9, None]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("{sampler: joined-rows, rows: 9, windows: 2}", "both say how much text"),
        ("{sampler: consecutive, rows: 9}", "'consecutive' draws no number of rows"),
        ("{rows: 9}", "'distinct' draws no number of rows"),
        ("{sampler: joined-rows, rows: 0}", "rows"),
    ],
)
def test_rows_that_make_no_sense_are_refused(load, registry, own, said):
    with pytest.raises(PrunebenchError, match=said):
        cells(load, registry, own)


def test_lists_fan_out_and_decide_the_identity(load, registry):
    found = cells(load, registry, "{windows: [2, 3]}")
    assert [cell.calibration.windows for cell in found] == [4, 2, 3]
    assert len({cell.id for cell in found}) == 3


TWO = """\
calibration:
  - {corpus: boolq-passages, windows: 4, length: 16}
  - {corpus: boolq-passages, split: evaluation, windows: [2, 3], length: 8}
"""
WITH_TWO = SUITE[: SUITE.index("calibration: {corpus")] + TWO


def shapes(found):
    return [
        (one.method.name, one.calibration.split, one.calibration.windows, one.calibration.length)
        for one in found
    ]


def test_several_calibrations_make_cells_of_their_own(load, registry):
    found = cells(load, registry, "{windows: 7}", WITH_TWO)
    assert shapes(found) == [
        ("wanda", "calibration", 4, 16),
        ("wanda", "evaluation", 2, 8),
        ("wanda", "evaluation", 3, 8),
        # one of its own for each of the suite's, and equal ones once
        ("shortgpt", "calibration", 7, 16),
        ("shortgpt", "evaluation", 7, 8),
    ]


def test_a_method_may_have_a_list_of_its_own(load, registry):
    own = "[{windows: 2}, {corpus: boolq-passages, windows: 3, length: 4}]"
    _, *found = cells(load, registry, own)
    assert shapes(found) == [("shortgpt", "evaluation", 2, 16), ("shortgpt", "calibration", 3, 4)]


def test_a_list_of_one_gives_the_cells_that_it_gives_alone(load, registry):
    line = "calibration: {corpus: boolq-passages, split: evaluation, windows: 4, length: 16}"
    listed = SUITE.replace(line, line.replace("{", "[{").replace("}", "}]"))
    alone, several = (
        cells(load, registry, own, text)
        for own, text in (("{windows: 2}", SUITE), ("[{windows: 2}]", listed))
    )
    assert [one.id for one in alone] == [one.id for one in several]


def test_one_of_several_is_changed_by_its_index(load, registry):
    text = WITH_TWO.replace("OWN", "{}")
    suite = load(text, "calibration.1.windows=5")
    assert [one.windows for one in suite.calibration] == [4, 5]
    with pytest.raises(PrunebenchError, match="items of this list have no names: give an index"):
        load(text, "calibration.windows=5")


@pytest.mark.parametrize(
    ("text", "own", "said"),
    [
        (WITH_TWO.replace("length: 8", "size: 8"), "{}", r"8: calibration\[1\]\.size: unknown key"),
        (SUITE, "[{windows: 2}, {window: 2}]", r"calibration\[1\]\.window: unknown key 'window'"),
        (SUITE, "[]", r"5: methods\.shortgpt\.calibration: an empty list makes no cells"),
        (SUITE, "[7]", r"5: methods\.shortgpt\.calibration\[0\]"),
        (
            SUITE.replace(
                "{corpus: boolq-passages, split: evaluation, windows: 4, length: 16}", "[]"
            ),
            "{}",
            "'wanda' needs calibration and the suite has none",
        ),
    ],
)
def test_what_is_wrong_in_a_list_is_named_by_its_index(load, text, own, said):
    with pytest.raises(PrunebenchError, match=said):
        load(text.replace("OWN", own))


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
