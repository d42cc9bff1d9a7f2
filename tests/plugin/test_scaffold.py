"""The package of a new plugin works without changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench import PrunebenchError, run
from prunebench.cli import prunebench as command
from prunebench.plugin.scaffold import SCAFFOLDS, STRUCTURES, write_package

MODULE = "prunebench_my_idea.py"


def invoke(*arguments: str | Path):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_every_package_is_complete_and_registers_its_plugin(tmp_path: Path, kind: str) -> None:
    words = (
        ("--structure", kind.partition("-")[2]) if kind.startswith("method-") else ("--kind", kind)
    )
    done = invoke("plugins", "new", "my-idea", *words, "--in", tmp_path)
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
    assert len((folder / MODULE).read_text().splitlines()) <= 40
    listed = invoke("plugins", "--json", "--plugin", folder / MODULE)
    row = next(row for row in json.loads(listed.output) if row["name"] == "my-idea")
    assert row["status"] == "ok"
    assert row["kind"] == SCAFFOLDS[kind].kind
    planned = invoke(
        "plan", folder / "compare.yaml", "--plugin", folder / MODULE, "--out", tmp_path / "run"
    )
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("kind", [name for name, one in SCAFFOLDS.items() if one.contract])
def test_a_new_plugin_keeps_the_contract(tmp_path: Path, kind: str) -> None:
    folder = write_package("my-idea", kind, tmp_path)
    done = invoke("plugins", "check", "my-idea", "--family", "llama", "--plugin", folder / MODULE)
    assert done.exit_code == 0, done.output
    assert f"{SCAFFOLDS[kind].kind} my-idea of {MODULE} sha256:" in done.output
    assert not [sign for sign in ("BROKEN", "hint") if sign in done.output], done.output
    assert len([line for line in done.output.splitlines() if line.startswith("ok ")]) >= 8


@pytest.mark.thirdparty
@pytest.mark.timeout(600)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_tests_of_a_new_method_pass(tmp_path: Path, structure: str) -> None:
    """pytest in the new package, on one family."""
    folder = write_package("my-idea", STRUCTURES[structure], tmp_path)
    test = folder / "tests" / f"test_{MODULE}"
    one_family = "MethodContract):\n    families = ('opt',)"
    test.write_text(test.read_text().replace("MethodContract):", one_family))
    environment = {
        **os.environ,
        "PRUNEBENCH_PLUGIN_FILES": str(folder / MODULE),
        "PYTHONPATH": str(folder),
    }
    words = ["-q", "-p", "no:cacheprovider", "-W", "ignore", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_structure_is_for_methods_alone(tmp_path: Path) -> None:
    words = ("plugins", "new", "my-idea", "--kind", "metric", "--structure", "width")
    done = invoke(*words, "--in", tmp_path)
    assert "--structure is for methods, not for a metric" in str(done.exception)


@pytest.mark.processes
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
    counts = SCAFFOLDS[kind].contract
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
