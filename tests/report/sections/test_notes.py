"""Notes of plugins: long lists are drawn, the rest is short text."""

from __future__ import annotations

import re

import pytest

from prunebench.experiment.plugins import RecoveryRef
from prunebench_report import render
from prunebench_report.sections import recovery_plots
from prunebench_report.sections.notes import notes


def noted(build, **method_notes):
    record = build.record(build.cell("shortgpt", ratio=0.1), 40.0, 1.1)
    record.method_notes = method_notes
    return record


def test_scores_of_layers_are_bars_with_the_removed_ones_marked(build):
    influence = [0.1234567890123456 + layer / 100 for layer in range(30)]
    found = notes(noted(build, block_influence=influence, removed_in_order=[3, 7]))
    [one] = found.figures
    assert one.caption == "block influence"
    assert one.svg.count("<rect") == 30
    assert re.findall(r"<title>(\d+): [\d.]+, removed</title>", one.svg) == ["3", "7"]
    assert ">Layer</text>" in one.svg
    assert found.facts == [("removed_in_order", "3, 7")]


def test_one_value_far_above_the_others_is_cut_and_named(build):
    [one] = notes(noted(build, block_influence=[0.1, 0.2, 0.15, 0.1, 0.2, 40.0])).figures
    assert one.notes == ("Bars cut at the top: 5 (40.00).",)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ({f"{n}.{kind}": n for n in range(4) for kind in ("attention", "mlp")}, 2),
        ({f"layers.{n}.mlp.{k}_proj": 0.5 for n in range(9) for k in "abcdefg"}, 1),
        ([f"{n}:8" for n in (2, 4, 4, 6)], 1),
        ([[4, 3.0], [8, 2.5], [12, 2.0]], 1),
    ],
)
def test_what_belongs_to_layers_or_steps_is_drawn(build, value, captions):
    found = notes(noted(build, shares=value, left=1))
    assert len(found.figures) == captions
    assert found.facts == [("left", "1")]


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        list(range(1000)),
        [1.0, None, 2.0, 3.0],
        [True, False, True, False],
        [float("inf")] * 6,
        [[2, 5.0], [1, 4.0]],
        {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0},
        "text",
    ],
)
def test_anything_else_stays_text(build, value):
    found = notes(noted(build, one=value))
    assert found.figures == []
    assert found.facts


def test_floats_have_four_digits(build):
    assert notes(noted(build, share=0.50000000012345)).facts == [("share", "0.5000")]


def repaired(build, method, losses):
    data = build.cell("wanda").calibration
    lora = RecoveryRef(name="lora", distribution="prunebench", version="0.1.0", data=data)
    one = build.record(build.cell(method).model_copy(update={"recovery": lora}), 40.0, 1.0)
    one.recovery_notes = {"steps": 30, "loss_curve": losses}
    return one


def test_loss_curves_of_recoveries_are_lines_of_one_plot(build, tmp_path):
    records = [
        build.quickstart()[0],
        repaired(build, "wanda", [[10, 3.0], [20, 2.5], [30, 2.2]]),
        repaired(build, "shortgpt", [[10, 3.5], [20, 3.0], [30, 2.8]]),
    ]
    [model] = recovery_plots.section(build.given(records))
    [one] = model["figures"]
    assert one.caption == "Loss curve of the recoveries"
    assert [entry.name for entry in one.legend] == ["wanda + lora", "shortgpt + lora"]
    assert one.svg.count('<g class="line') == 2
    assert "wanda + lora: from 3.000 to 2.200." in one.desc
    assert one.caption in render(build.store(tmp_path / "run", records))
    assert recovery_plots.section(build.given(build.quickstart())) == []


def test_curves_of_several_trainings_keep_apart(build):
    rounds = [{"loss_curve": [[1, 3.0], [2, 2.0]]}, {"loss_curve": [[1, 2.5], [2, 1.5]]}]
    found = notes(noted(build, trainings=rounds))
    assert [one.caption for one in found.figures] == [
        "trainings 1 loss curve",
        "trainings 2 loss curve",
    ]
