"""`prunebench suites`: what there is, and what each needs."""

from __future__ import annotations

import json

import pytest

from cli_calls import call
from prunebench.suite.source import shipped


def test_every_shipped_suite_says_what_it_needs():
    rows = json.loads(call("suites", "--json").out)
    assert [row["name"] for row in rows] == list(shipped())
    assert all(row["needs"] for row in rows)
    large = {row["name"] for row in rows if "GPU" in row["needs"]}
    assert large == set(shipped()) - {"smoke", "quickstart", "seeds", "engines"}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_and_needs_are_whole_in_any_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("suites").out.splitlines()
    assert max(map(len, lines)) <= width
    assert {line.split(" ")[0] for line in lines} >= set(shipped())
    assert lines[-1] == "next: prunebench plan SUITE"
