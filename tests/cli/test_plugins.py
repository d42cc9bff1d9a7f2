"""`prunebench plugins new`, `check` and `show`, and `prunebench doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench import run
from prunebench.cli import prunebench
from prunebench.errors import PrunebenchError
from prunebench.plugin.scaffold import SCAFFOLDS, write_package

MODULE = "prunebench_my_idea.py"


def invoke(*arguments: str | Path):
    return CliRunner().invoke(prunebench, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_every_package_is_whole_and_registers_what_it_says(tmp_path: Path, kind: str) -> None:
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
    assert row["kind"] == kind.removesuffix("-source").removeprefix("report-")
    planned = invoke(
        "plan", folder / "compare.yaml", "--plugin", folder / MODULE, "--out", tmp_path / "run"
    )
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("kind", ["method", "allocation", "recovery", "metric"])
def test_what_is_written_keeps_the_contract(tmp_path: Path, kind: str) -> None:
    folder = write_package("my-idea", kind, tmp_path)
    done = invoke("plugins", "check", "my-idea", "--family", "llama", "--plugin", folder / MODULE)
    assert done.exit_code == 0, done.output
    assert f"{kind} my-idea of {MODULE} sha256:" in done.output
    assert "BROKEN" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("ok ")]) >= 8


def test_an_engine_that_is_written_runs_cells(tmp_path: Path, monkeypatch) -> None:
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
    taken = invoke("plugins", "new", "local", "--kind", "engine", "--in", tmp_path)
    assert "the engine 'local' is there already" in str(taken.exception)


@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_the_readme_says_what_holds_for_its_kind(tmp_path: Path, kind: str) -> None:
    text = (write_package("my-idea", kind, tmp_path) / "README.md").read_text()
    counts = kind in {"method", "allocation", "recovery", "metric"}
    assert ("part of every result's id" in text) == counts
    assert ("--engine my-idea" in text) == (kind == "engine")


@pytest.mark.parametrize("name", ["My-Idea", "9lives", "a_b", "../out", "a--b", ""])
def test_what_cannot_name_a_plugin_is_refused_and_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrunebenchError, match="cannot name a plugin"):
        write_package(name, "method", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_a_taken_name_is_said(tmp_path: Path) -> None:
    write_package("my-idea", "method", tmp_path)
    with pytest.raises(PrunebenchError, match="exists already"):
        write_package("my-idea", "method", tmp_path)
    taken = invoke("plugins", "new", "wanda", "--in", tmp_path)
    assert "the method 'wanda' is there already" in str(taken.exception)


def test_a_broken_promise_is_exit_code_1_and_names_the_family(tmp_path: Path) -> None:
    folder = write_package("my-idea", "method", tmp_path)
    path = folder / MODULE
    path.write_text(
        path.read_text().replace("weight.abs().float()", "__import__('torch').rand(weight.shape)")
    )
    done = invoke("plugins", "check", "my-idea", "--family", "opt", "--plugin", path)
    assert done.exit_code == 1
    assert (
        "BROKEN  gives the same result for the same seed (opt: two runs with one seed differ"
        in done.output
    )


def test_check_takes_options_and_refuses_wrong_ones() -> None:
    done = invoke(
        "plugins", "check", "magnitude", "sparsity=0.3", "scope=global", "--family", "opt"
    )
    assert done.exit_code == 0, done.output
    assert "did you mean 'llama'" in str(
        invoke("plugins", "check", "wanda", "--family", "lama").exception
    )
    assert "sparsity" in str(invoke("plugins", "check", "wanda", "sparsity=2").exception)
    assert "have a contract" in str(invoke("plugins", "check", "c4").exception)


def test_show_says_paper_structures_and_every_option() -> None:
    text = invoke("plugins", "show", "magnitude").output
    for words in (
        "arXiv:1506.02626",
        "n:m, unstructured",
        "llama",
        "min_density: float (>= 0, <= 1) = 0.01",
        "clean | reference",
    ):
        assert words in text
    owl = json.loads(invoke("plugins", "show", "owl", "--json").output)[0]
    assert (owl["kind"], owl["needs_calibration"]) == ("allocation", True)
    assert [option["name"] for option in owl["options"]] == ["threshold", "spread"]
    assert "did you mean 'wanda'" in str(invoke("plugins", "show", "wnda").exception)
    metric = invoke("plugins", "show", "kl-divergence").output
    for words in (
        "arXiv:2407.09141",
        "kl-divergence, nats: lower is better",
        "top1-agreement, share: higher is better",
    ):
        assert words in metric


def test_showing_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from prunebench.cli import prunebench\n"
        "result = CliRunner().invoke(prunebench, ['plugins', 'show', 'wanda'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_hook_calls_can_be_watched(monkeypatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_TRACE_HOOKS", "1")
    assert (
        "hook prunebench_register_method of prunebench:wanda: wanda (" in invoke("plugins").stderr
    )
    monkeypatch.setenv("PRUNEBENCH_TRACE_HOOKS", "0")
    assert not invoke("plugins").stderr


@pytest.mark.parametrize("options", [[], ["--verbose"]])
def test_verbose_shows_where_an_error_comes_from(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "prunebench", *options, "plan", "gone.yaml"]
    told = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 2
    assert "there is no suite" in told.stderr
    assert ("Traceback" in told.stderr) == bool(options)


def test_doctor_says_what_is_measured_and_why_not() -> None:
    found = json.loads(invoke("doctor", "--offline", "--json").output)
    by_name = {one["name"]: one for one in found}
    assert {"machine", "versions", "measured", "caches", "plugins"} == {
        one["topic"] for one in found
    }
    assert {one["status"] for one in found} <= {"ok", "no"}
    assert all(one["text"] for one in found)
    assert by_name["prunebench"]["status"] == "ok"
    text = invoke("doctor", "--offline").output
    assert "energy of the CPU" in text


def test_doctor_gives_up_on_a_hub_that_does_not_answer(monkeypatch) -> None:
    import time
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: time.sleep(30))
    monkeypatch.setattr("prunebench.cli.doctor.LIMIT_S", 0.2)
    found = {one["topic"]: one for one in json.loads(invoke("doctor", "--json").output)}
    assert found["network"]["status"] == "no"
    assert "no answer within 0.2 s" in found["network"]["text"]


def test_the_shell_completes_commands() -> None:
    asked = {
        "_PRUNEBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": "prunebench pl",
        "COMP_CWORD": "1",
    }
    asked["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["prunebench"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["plain,plan", "plain,plugins"]
