"""The package of a new plugin works without changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench import PrunebenchError, run
from prunebench.cli import prunebench as command
from prunebench.plugin.scaffold import SCAFFOLDS, write_package

MODULE = "prunebench_my_idea.py"


def invoke(*arguments: str | Path):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_every_package_is_complete_and_registers_its_plugin(tmp_path: Path, kind: str) -> None:
    done = invoke("plugins", "new", "my-idea", "--kind", kind, "--in", tmp_path)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "prunebench-my-idea"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {
        "pyproject.toml",
        "README.md",
        "compare.yaml",
        MODULE,
        f"tests/test_{MODULE}",
    }
    assert all("$" not in (folder / path).read_text() for path in written)
    assert len((folder / MODULE).read_text().splitlines()) <= 30
    listed = invoke("plugins", "--json", "--plugin", folder / MODULE)
    row = next(row for row in json.loads(listed.output) if row["name"] == "my-idea")
    assert row["status"] == "ok"
    assert row["kind"] == SCAFFOLDS[kind].kind
    planned = invoke(
        "plan", folder / "compare.yaml", "--plugin", folder / MODULE, "--out", tmp_path / "run"
    )
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("kind", ["method", "allocation", "recovery", "metric"])
def test_a_new_plugin_keeps_the_contract(tmp_path: Path, kind: str) -> None:
    folder = write_package("my-idea", kind, tmp_path)
    done = invoke("plugins", "check", "my-idea", "--family", "llama", "--plugin", folder / MODULE)
    assert done.exit_code == 0, done.output
    assert f"{kind} my-idea of {MODULE} sha256:" in done.output
    assert "BROKEN" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("ok ")]) >= 8


def test_a_new_engine_runs_cells(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    folder = write_package("my-idea", "engine", tmp_path)
    suite = {
        "name": "mine",
        "models": "tiny-llama",
        "methods": ["magnitude"],
        "profile": None,
        "device": "cpu",
    }
    options = {
        "engine": {"my-idea": {"pause_s": "0.1"}},
        "plugins": [folder / MODULE],
    }
    frame = run(suite, out=tmp_path / "run", report=False, **options)
    assert list(frame["method"]) == ["dense", "magnitude"]
    assert set(frame["status"]) == {"ok"}


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_the_readme_fits_the_kind(tmp_path: Path, kind: str) -> None:
    text = (write_package("my-idea", kind, tmp_path) / "README.md").read_text()
    counts = kind in {"method", "allocation", "recovery", "metric"}
    assert ("part of every result's id" in text) == counts
    assert ("--engine my-idea" in text) == (kind == "engine")


@pytest.mark.parametrize("name", ["My-Idea", "9lives", "a_b", "../out", "a--b", ""])
def test_an_invalid_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrunebenchError, match="cannot name a plugin"):
        write_package(name, "method", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_a_taken_name_is_refused(tmp_path: Path) -> None:
    write_package("my-idea", "method", tmp_path)
    with pytest.raises(PrunebenchError, match="exists already"):
        write_package("my-idea", "method", tmp_path)
    for name, kind in (("wanda", "method"), ("local", "engine")):
        taken = invoke("plugins", "new", name, "--kind", kind, "--in", tmp_path)
        assert f"the {kind} '{name}' is there already" in str(taken.exception)
