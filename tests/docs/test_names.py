"""Every name, path, option and variable that the READMEs mention is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from prunebench import Context
from prunebench.cli import COMMANDS, prunebench
from prunebench.plugin import hookspecs
from prunebench.suite.source import shipped
from readmes import PAGES, ROOT, environments, parse, spans, text_of

ROOTS = (".", "harness/prunebench", "reports", "plugins")
"""Paths are written from the top of the tree, or from these packages."""

ELSEWHERE = (
    r"runs/.*|cells/ID\.(json|log|partial\.\w+)|(suite|report|cells|plan|pruning|diff|wanda)\.\w+"  # a run
    r"|~/.*|\.tox/.*|.*/bin|bin"  # this machine
    r"|(mine|my-suite|compare|my)\.\w+|\./my-data|TASK/.*|test-00000-.*|train_head500\.\w+"  # yours
    r"|\.(txt|jsonl|parquet|npy|gguf|damaged)|text/.*|org/.*"
)
"""Names of files that are not in this tree."""


def every(pattern: str) -> list[Any]:
    """Pages with a span that matches, as parameters of a test."""
    return [
        pytest.param(span, id=f"{page}: {span}")
        for page in PAGES
        for span in dict.fromkeys(spans(page))
        if re.fullmatch(pattern, span)
    ]


@pytest.mark.parametrize("name", every(r"prunebench\w*(\.\w+)+(\(.*\))?"))
def test_a_dotted_name_can_be_imported(name: str) -> None:
    parts = name.partition("(")[0].split(".")
    value: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[:number]))
        value = getattr(value, part)


@pytest.mark.parametrize(
    "path", every(r"[\w.~/-]+(/[\w.~-]*|\.(py|ya?ml|toml|ini|md|json|j2|txt))")
)
def test_a_path_is_in_the_tree(path: str) -> None:
    if re.fullmatch(ELSEWHERE, path) or path in shipped():
        return
    found = [ROOT / root / path for root in ROOTS if (ROOT / root / path).exists()]
    templates = ROOT / "reports" / "prunebench_report" / "output" / "templates"
    assert found or (templates / path).exists(), f"{path} is not in the tree"


@pytest.mark.parametrize("command", every(r"prunebench (-|[a-z]+).*"))
def test_a_command_is_one_that_the_command_line_takes(command: str) -> None:
    try:
        parse(command.split()[1:])
    except click.MissingParameter:
        pass  # a command that is only mentioned has no arguments
    except click.exceptions.Exit as end:  # `--help`
        assert end.exit_code == 0


def test_every_option_is_one_of_some_command() -> None:
    known: set[str] = {"--help", "--version"}
    pending = [prunebench.get_command(None, name) for name in COMMANDS]  # type: ignore[arg-type]
    pending.append(prunebench)
    while pending:
        command = pending.pop()
        assert command is not None
        known |= {word for one in command.params for word in (*one.opts, *one.secondary_opts)}
        if hasattr(command, "list_commands") and command is not prunebench:
            pending += [command.get_command(None, one) for one in command.list_commands(None)]
    for page in PAGES:
        for span in spans(page):
            if span.startswith("--"):
                assert span.split()[0] in known, f"{page}: {span}"


def test_every_tox_environment_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"tox run -e (\w+)", text_of(page)):
            assert name in environments(), f"{page}: {name}"


def test_every_hook_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"prunebench_(?:register|cell)_\w+", text_of(page)):
            assert hasattr(hookspecs, name), f"{page}: {name}"


def test_every_environment_variable_is_one_that_the_source_reads() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "harness").rglob("*.py"))
    for page in PAGES:
        for name in re.findall(r"(?<![\w])PRUNEBENCH_\w+", text_of(page)):
            assert f'"{name}"' in source, f"{page}: {name}"


def test_every_tool_of_the_context_is_there() -> None:
    context = Context(torch.zeros((1, 2), dtype=torch.int64), 0, [0])
    for page in PAGES:
        for name in re.findall(r"\bcontext\.(\w+)", "\n".join([*spans(page), text_of(page)])):
            assert hasattr(context, name), f"{page}: context.{name}"


def test_the_folder_of_paths_elsewhere_is_not_a_loophole() -> None:
    """What counts as a file of the reader's is not in the tree at the same time.

    `runs/` never is: git ignores it, and a reader's quickstart fills it.
    """
    for page in PAGES:
        for span in spans(page):
            if re.fullmatch(ELSEWHERE, span) and not span.startswith((".", "~", "runs/")):
                assert not (ROOT / Path(span)).exists(), span
