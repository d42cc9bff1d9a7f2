"""Every shell command of the READMEs: parsed by the command line, planned, or looked up where it is defined.

Commands that only read are run. Suites are planned rather than run, because that needs no model;
`tox run -e thirdparty` runs the tutorial in full.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from prunebench.app.one_cell import one_cell
from prunebench.cli import prunebench
from prunebench.cli.prune import assignments
from prunebench.errors import PrunebenchError
from prunebench.plugin.host import load_plugins
from readmes import ROOT, Block, blocks, environments, parse

CHEAP = {"suites", "plan", "plugins", "schema", "new"}
"""Commands that are run as they are, because they take no time."""

INVENTED_FILES = {
    "mine.py",
    "my-suite.yaml",
    "compare.yaml",
    "prunebench_my_idea.py",
    "cells_to_csv.py",
    "./pruned",
}
"""Files and folders that the reader has written by the time a command names them."""

OTHERS = {".", "cd", "git", "ruff", "mypy", "lint-imports"}
"""Programs that are not ours and take no argument of ours."""


def commands(block: Block) -> list[list[str]]:
    """The words of every command: comments, `&&`, redirections and line ends resolved."""
    code = block.code.replace("\\\n", " ")
    found: list[list[str]] = []
    for line in code.splitlines():
        for part in re.split(r"\s&&\s", line):
            words = shlex.split(part, comments=True)
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                found.append(words)
    return found


def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def check(words: list[str]) -> None:
    program, *arguments = words
    if program == "prunebench":
        _check_prunebench(arguments)
    elif program.endswith("python3") and arguments[:2] == ["-m", "venv"]:
        assert len(arguments) == 3
    elif program.endswith("tox"):
        assert arguments[:2] == ["run", "-e"]
        assert arguments[2] in environments()
    elif program.endswith("pip"):
        assert arguments[0] == "install"
        for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
            assert extra in extras()
    elif program == "pytest":
        for path in (one for one in arguments if not one.startswith("-")):
            assert (ROOT / path).exists(), path
    else:
        assert program in OTHERS, f"no test knows what `{program}` does"


def _check_prunebench(arguments: list[str]) -> None:
    context = parse(arguments)
    command, options = context.command.name, context.params
    if any(word in INVENTED_FILES for word in arguments):
        return
    if command == "run":
        _plan(options)
    elif command == "prune":
        _plan_one(options)
    elif command in CHEAP:
        result = CliRunner().invoke(prunebench, arguments)
        assert result.exit_code == 0, result.output


def _plan(options: dict[str, Any]) -> None:
    """Plan the suite with the command's changes and selection; a pattern without a match fails."""
    words = [
        word
        for key, option in (("overrides", "--set"), ("only", "--only"), ("skip", "--skip"))
        for value in options[key]
        for word in (option, value)
    ]
    result = CliRunner().invoke(prunebench, ["plan", options["suite"], *words])
    if isinstance(result.exception, PrunebenchError):
        raise result.exception
    assert result.exit_code == 0, result.output


def _plan_one(options: dict[str, Any]) -> None:
    registry = load_plugins()
    given = assignments(options["options"])
    cell = one_cell(options["model"], {options["method"]: given}, registry, command="a test")
    assert cell.method.name == options["method"]


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_every_command_is_one_that_exists(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for what `plugins new` writes
    monkeypatch.setattr("prunebench.plugin.files.with_files", lambda _: nullcontext())
    found = commands(block)
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_every_script_is_sound_and_so_are_its_commands(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    words = shlex.split(block.code.replace("\\\n", " "), comments=True)
    assert "prunebench" in words
    _check_prunebench(words[words.index("prunebench") + 1 :])


@pytest.mark.parametrize(
    "line",
    [
        "prunebench run nowhere",
        "prunebench run quickstart --ony wanda",
        "prunebench plugins sow wanda",
        "prunebench run quickstart --set calibration.window=8",
        "prunebench prune tiny-llama wanda sparsty=0.5 --out x",
        "tox run -e test",
        "pytest tests/nowhere.py",
        "pip install .[hubs]",
        "rm -rf .",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, PrunebenchError, click.UsageError)):
        check(shlex.split(line))
