"""Tables and sentences in terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prunebench.cli.tables import Column, fitted
from prunebench.cli.terminal import tell, width

COLUMNS = [
    Column("cell", words=True, keep=True),
    Column("Perplexity", right=True),
    Column("Speed-up", right=True),
    Column("Memory", right=True),
    Column("Parameters", right=True),
]
ROWS = [
    ["dense", "15.34", "n/a", "538 MB", "134 M"],
    ["wanda sparsity=0.5 + lora rank=8", "21.02", "0.99 (0.97 to 1.01)", "538 MB", "134 M"],
    ["llm-pruner target_parameters=0.25", "40.10 <", "1.21 (1.19 to 1.25)", "430 MB", "101 M"],
]


def printed(room, rows=ROWS, leave_out=()):
    table, missing = fitted(COLUMNS, rows, room, leave_out)
    console = Console(width=1000, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()], missing


@pytest.mark.parametrize("room", [30, 40, 60, 80, 120])
def test_names_are_in_every_terminal_and_no_word_is_broken(room):
    lines, missing = printed(room)
    assert max(map(len, lines)) <= room
    words = {word for line in lines for word in line.split()}
    for name, *values in ROWS:
        assert set(name.split()) <= words
        for column, value in zip(COLUMNS[1:], values, strict=True):
            assert (column.head in missing) or any(value in line for line in lines)


def test_columns_go_from_the_right_or_as_told():
    assert printed(120)[1] == []
    assert printed(60)[1] == ["Memory", "Parameters"]
    assert "Speed-up" in printed(60, leave_out=["Speed-up"])[1]
    assert "Parameters" not in printed(60, leave_out=["Speed-up"])[1]


def test_a_pipe_gets_everything_in_one_line_each():
    lines, missing = printed(None)
    assert (len(lines), missing) == (4, [])


def test_a_word_longer_than_the_terminal_is_the_only_one_that_is_folded():
    lines, _ = printed(30, [["x" * 70, "1", "2", "3", "4"]])
    assert max(map(len, lines)) <= 30
    assert "".join(line.split()[0] for line in lines[1:4]) == "x" * 70


def test_signs_that_take_two_columns_are_counted_so():
    lines, _ = printed(40, [["モデル" * 3 + " 剪定" * 4, "1", "2", "3", "4"]])
    assert "モデル" * 3 in lines[1]


def test_sentences_break_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    assert width() == width(err=True) == 60
    path = "runs/" + "a-long-name/" * 8 + "report.html"
    tell(f"Everything that was found is in the report, which is {path} as always.")
    lines = capsys.readouterr().out.splitlines()
    assert path in (line.strip() for line in lines)
    assert all(len(line) <= 60 for line in lines if path not in line)
    monkeypatch.delenv("COLUMNS")
    tell("word " * 60)
    assert len(capsys.readouterr().out.splitlines()) == 1
