"""The command line's light side: quick, torch-free, and the README's promises about it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench.cli import COMMANDS, prunebench
from rig import Rig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


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


def test_the_readmes_commands_parse(monkeypatch) -> None:
    """Every `prunebench ...` line is one that the command line takes; those that measure are run by CI itself."""
    monkeypatch.setattr("prunebench.plugin.files.with_files", lambda _: nullcontext())
    blocks = re.findall(r"```sh\n(prunebench .*?)```", README, re.DOTALL)
    lines = re.findall(r"^prunebench (.+?)(?:\s+#.*)?$", "\n".join(blocks), re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        name, *arguments = shlex.split(line)
        assert prunebench.get_command(None, name).make_context(name, arguments).info_name == name


def test_ci_runs_the_readmes_test_command() -> None:
    first, second = re.findall(r"```sh\n(python3 -m venv .*)\n```", README)
    assert first.endswith("tox run -e quickstart")
    assert second.endswith("tox run -e tests")
    assert second in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readmes_suite_and_plugin_work(tmp_path: Path) -> None:
    """The example plugin runs on a tiny model, the example suite is planned."""
    rig = Rig(tmp_path)
    [plugin] = [
        code
        for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "LinearMethod" in code
    ]
    assert tomllib.loads(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])["project"][
        "entry-points"
    ]["prunebench"]
    rig.plugin("mine", plugin)
    result = rig.prunebench("run", rig.suite("mine: {sparsity: 0.25}"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mine sparsity=0.25: ok" in result.stdout
    assert "sparsity 25.0%" in result.stdout

    (tmp_path / "my.yaml").write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    planned = json.loads(rig.prunebench("plan", "my.yaml", "--json").stdout)
    assert len(planned["cells"]) == 6


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
