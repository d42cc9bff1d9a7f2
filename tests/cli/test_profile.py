"""`prunebench profile`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli.profile import command
from tiny import tiny_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_checkpoint(tmp_path / "tiny"))


def test_it_shows_where_time_and_bytes_go(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = [
        "--prompt",
        "8",
        "--new-tokens",
        "5",
        "--min-time",
        "0",
        "--json",
        str(tmp_path / "profile.json"),
    ]
    done = CliRunner().invoke(command, [model, *shape])
    assert done.exit_code == 0, done.output
    for words in (
        "time to first token",
        "inter-token latency",
        "I/O floor",
        "attention",
        "MLP",
        "speed-up over generate()",
        "Deja Vu",
    ):
        assert words in done.output
    data = json.loads((tmp_path / "profile.json").read_text())
    assert data["latency"]["prompt"] == 8
    assert {part["part"] for part in data["breakdown"]["parts"]} == {
        "attention",
        "mlp",
        "norms",
        "head",
        "rest",
    }
    assert [form["form"] for form in data["forms"]][:2] == ["generate()", "eager"]


def test_a_model_that_is_not_there_is_an_error_with_a_fix(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path / "nothing")])
    assert done.exit_code != 0
    assert done.exception is not None
    assert "nothing" in str(done.exception)
