"""The main table for papers, and the end of a run in the terminal."""

from __future__ import annotations

import re

import pytest

from prunebench_report import main_table, summary


@pytest.fixture
def folder(build, tmp_path):
    records = [*build.quickstart(), build.failed(build.cell("sparse|gpt", sparsity=0.5))]
    return build.store(tmp_path / "run", records, title="50 % & more_").folder


def test_markdown_is_a_table(folder):
    lines = main_table([folder], "markdown").splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert lines[0].startswith("| cell | Perplexity | Recovery (%) |")
    assert len(lines) == 2 + 9
    assert r"1.11 \[1.09, 1.12\]" in lines[8]
    assert r"| sparse\|gpt sparsity=0.5 (failed) |" in lines[-1] + lines[-2]


def test_latex_has_as_many_columns_as_it_says_and_no_bare_letters(folder):
    text = main_table([folder], "latex")
    columns = len(re.search(r"\{l(r+)\}", text)[1]) + 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert r"\caption{50 \% \& more\_}" in text
    assert not re.search(r"(?<!\\)[%&_#]", "".join(rows).replace(" & ", ""))


def test_a_part_alone(folder):
    assert len(main_table([folder], "markdown", only=["shortgpt"]).splitlines()) == 2 + 3


def test_the_terminal_says_what_the_report_says_first(folder):
    found = summary(folder)
    assert found.head[:2] == ["cell", "Perplexity"]
    assert len(found.rows) == 9
    assert any("shortgpt ratio=0.25" in sentence for sentence in found.sentences)
    rows = {row[0]: row[1:] for row in found.rows}
    assert any(value.endswith("<") for value in rows["wanda sparsity=0.5"])
    assert "sparse|gpt sparsity=0.5: failed" in rows


def test_a_long_run_is_cut_off(build, tmp_path):
    records = [build.failed(build.cell("wanda", sparsity=n / 100)) for n in range(1, 41)]
    found = summary(build.store(tmp_path / "run", records).folder)
    assert (len(found.rows), found.left) == (30, 10)
