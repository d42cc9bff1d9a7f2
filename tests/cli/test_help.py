"""Commands that only show something are quick, and import no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import COMMANDS, prunebench

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["plugins"], ["plan", "quickstart"], ["schema"], ["run", "--help"]],
)
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from prunebench.cli import prunebench\n"
        f"result = CliRunner().invoke(prunebench, {arguments!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_help_and_the_package_import_little_beside_click() -> None:
    code = (
        "import sys, click; before = set(sys.modules); import prunebench, prunebench.cli\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == [
        "prunebench",
        "prunebench.cli",
        "prunebench.cli.terminal",
        "prunebench.errors",
        "prunebench.exports",
    ]


def test_help_names_every_command_with_its_own_words() -> None:
    text = CliRunner().invoke(prunebench, ["--help"]).output
    for name, words in COMMANDS.items():
        assert name in text
        assert words.split()[0] in text
        command = prunebench.get_command(None, name)
        assert command.name == name
        assert command.help
