"""Warnings reach the terminal, and with --strict the exit code."""

from __future__ import annotations

import pytest

import report_builder as build
from cli_calls import call
from prunebench.record.expectations import Expectation
from prunebench.store.run_folder import RunStore
from rig import Rig


def figure(value):
    wanda = build.cell("wanda", sparsity=0.5)
    return Expectation(
        cells=(wanda.id,),
        model=wanda.model.name,
        method=wanda.label,
        metric="perplexity",
        corpus="boolq-passages",
        protocol=build.perplexity(1).protocol,
        value=value,
        tolerance=0.05,
        source="a paper",
    )


def run_folder(folder, *, value=52.31, flags=(), missing=()):
    records = [
        build.record(build.cell("dense"), 25.05, 1),
        build.record(build.cell("wanda", sparsity=0.5), 52.31, 1),
    ]
    records[1].flags = list(flags)
    return build.store(folder, records, missing=list(missing), expect=(figure(value),)).folder


def test_a_report_without_a_warning_is_strict(tmp_path):
    done = call("report", run_folder(tmp_path / "run"), "--strict")
    assert (done.code, done.err) == (0, "")


FORMS = pytest.mark.parametrize(
    "form", [[], ["--format", "markdown"], ["--format", "model-card"]], ids=" ".join
)


@FORMS
def test_page_table_and_warnings_read_the_records_once(tmp_path, monkeypatch, form):
    folder = run_folder(tmp_path / "run", flags=["threads changed"])
    read = []
    records = RunStore.records

    def counted(store, *arguments):
        read.append(store.folder)
        return records(store, *arguments)

    monkeypatch.setattr(RunStore, "records", counted)
    assert "before comparing numbers" in call("report", folder, *form).err
    assert read == [folder]


@FORMS
def test_warnings_are_printed_and_set_the_exit_code_of_strict(tmp_path, form):
    folder = run_folder(tmp_path / "run", flags=["threads changed"])
    done = call("report", folder, *form)
    assert done.code == 0
    assert "before comparing numbers:\n- A plugin left side effects behind" in done.err
    done = call("report", folder, "--strict", *form)
    assert done.code == 4
    assert done.err.endswith("--strict: 1 warning\n")
    assert (folder / "report.html").exists() == (not form)


def test_a_published_figure_that_is_missed_is_named_with_both_values(tmp_path):
    done = call("report", run_folder(tmp_path / "run", value=40), "--strict")
    assert done.code == 4
    assert (
        "published figures that this run does not reproduce:\n- wanda sparsity=0.5 on " in done.err
    )
    assert "published 40.00, measured 52.31; differs by more than 5 %" in done.err
    assert done.err.endswith("--strict: 1 published figure not reproduced\n")


def test_cells_that_were_not_run_are_a_warning_of_a_report(tmp_path):
    folder = run_folder(tmp_path / "run", missing=[build.cell("magnitude", sparsity=0.5)])
    done = call("report", folder, "--strict")
    assert done.code == 4
    assert "Not run: 1 of 3 cells" in done.err


def test_a_strict_run_ends_with_four_and_a_failed_one_with_one(tmp_path):
    rig = Rig(tmp_path)
    expect = "expect: [{model: model, method: magnitude, value: 1.5, source: nobody}]"
    suite = rig.suite("magnitude: {sparsity: 0.5}", more=expect)
    done = rig.run(suite, "--strict")
    assert done.returncode == 4, done.stderr
    assert "published 1.500" in done.stderr
    assert rig.run(suite).returncode == 0
    # What the user left out is no warning.
    assert rig.run(suite, "--only", "dense", "--strict", "--out", "other").returncode == 0
    assert rig.run(suite, "--strict", "--no-report").returncode == 4
