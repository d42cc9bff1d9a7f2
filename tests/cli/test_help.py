"""Commands that only show something are quick, and import no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import COMMANDS, prunebench
from rig import Rig

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
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_help_names_every_command_with_its_own_words() -> None:
    text = CliRunner().invoke(prunebench, ["--help"]).output
    for name, words in COMMANDS.items():
        assert name in text
        assert words.split()[0] in text
        command = prunebench.get_command(None, name)
        assert command.name == name
        assert command.help


def test_a_run_on_local_files_opens_no_connection(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(self, address):\n"
        "    open('connected.txt', 'a').write(f'{address}\\n')\n"
        "    raise OSError('no network in this test')\n"
        "original = socket.socket.connect\n"
        "socket.socket.connect = lambda self, a: original(self, a) if self.family == socket.AF_UNIX else refuse(self, a)\n"
        "socket.getaddrinfo = lambda *a, **k: refuse(None, a)\n"
    )
    result = rig.prunebench("run", rig.suite("wanda"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (tmp_path / "connected.txt").exists()
