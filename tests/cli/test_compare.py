"""`prunebench compare`, as a user and as CI calls it."""

from __future__ import annotations

import pytest

import report_builder as build
from cli_calls import call


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A, a run that is as good, one that lost quality in a cell, and one that may have."""
    folder = tmp_path_factory.mktemp("compare")
    for name, value, speed in (
        ("a", 20, 1.3),
        ("same", 20, 1.3),
        ("worse", 24, 1.3),
        ("slow", 20, 1.24),
    ):
        records = [
            build.record(build.cell("dense"), 15, 1),
            build.record(build.cell("shortgpt", ratio=0.25), value, speed),
        ]
        build.store(folder / name, records)
    return folder


def compare(runs, b, *words):
    return call("compare", runs / "a", runs / b, *words)


def test_without_limits_nothing_fails(runs):
    assert compare(runs, "worse").code == 0


def test_a_sure_loss_is_exit_code_one(runs):
    done = compare(runs, "worse", "--fail-on", "quality:1%,speed:5%")
    assert done.code == 1
    assert "perplexity boolq-passages" in done.out
    assert "beyond" in done.out
    assert done.err.startswith("limits: ")
    assert compare(runs, "worse", "--fail-on", "quality:25%").code == 0
    assert compare(runs, "same", "--fail-on", "quality:0,speed:50%").code == 0


def test_a_limit_inside_the_interval_fails_nothing(runs):
    done = compare(runs, "slow", "--fail-on", "speed:5%")
    assert done.code == 0
    assert "cannot tell" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("qualty:1%", "did you mean 'quality'"),
        ("quality:much", "write quality:1% or quality:0.01"),
        ("quality", "write quality:1% or quality:0.01"),
        ("quality:1%,quality:2%", "given twice"),
        ("quality:-1%", "no share"),
        ("quality:nan", "no share"),
        ("", "known: "),
    ],
)
def test_a_limit_that_is_none_is_wrong_usage(runs, words, message):
    done = compare(runs, "same", "--fail-on", words)
    assert done.code == 2
    assert message in done.err


def test_nothing_to_judge_is_no_success(runs):
    records = [build.record(build.cell("dense"), 15, 1)]
    build.store(runs / "dense only", records)
    done = call("compare", runs / "dense only", runs / "dense only", "--fail-on", "speed:5%")
    assert done.code == 2
    assert "nothing to judge" in done.err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_row_has_its_cell_in_a_narrow_terminal(runs, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = compare(runs, "worse", "--fail-on", "quality:1%")
    lines = done.out.splitlines()[1:]  # the first names the folders, which are never broken
    assert max(map(len, lines)) <= width
    assert sum("shortgpt" in line for line in lines) >= 2
