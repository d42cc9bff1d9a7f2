"""The main table as Markdown and LaTeX."""

from __future__ import annotations

import re

import pytest

from prunebench_report import load, main_table


@pytest.fixture
def folder(build, tmp_path):
    records = [*build.quickstart(), build.failed(build.cell("sparse|gpt", sparsity=0.5))]
    return build.store(tmp_path / "run", records, title="50 % & more_").folder


def test_markdown_is_a_table(folder):
    lines = main_table(load(folder), "markdown").splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert lines[0].startswith("| cell | Perplexity | Recovery (%) |")
    assert len(lines) == 2 + 9
    assert r"1.11 \[1.09, 1.12\]" in lines[8]
    assert r"| sparse\|gpt sparsity=0.5 (failed) |" in lines[-1] + lines[-2]


def test_latex_has_as_many_columns_as_it_says_and_escapes_every_letter(folder):
    text = main_table(load(folder), "latex")
    columns = len(re.search(r"\{l(r+)\}", text)[1]) + 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert r"\caption{50 \% \& more\_}" in text
    assert not re.search(r"(?<!\\)[%&_#]", "".join(rows).replace(" & ", ""))


def test_a_part_of_a_run_is_a_smaller_table(folder):
    assert len(main_table(load(folder, only=["shortgpt"]), "markdown").splitlines()) == 2 + 3
