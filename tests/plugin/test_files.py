"""A single file as a plugin: cells load it too, and the hash of its content is its version."""

from __future__ import annotations

import io
import os
import re
import subprocess
from pathlib import Path

import pytest

from prunebench import PrunebenchError
from prunebench.cell.events import EventWriter
from prunebench.cell.run import run_cell
from prunebench.plugin.files import VARIABLE, with_files
from prunebench.plugin.host import load_plugins
from prunebench.store.run_folder import RunStore
from rig import Rig

SOURCE = '''
"""Mine."""
import torch
from prunebench import LinearMethod, hookimpl

class Mine(LinearMethod):
    """Drop the first ones."""
    name = "mine"
    def score(self, weight, stats):
        return torch.arange(weight.numel()).view(weight.shape).float()

@hookimpl
def prunebench_register_method():
    return Mine
'''


def written(folder: Path, source: str = SOURCE) -> Path:
    path = folder / "my-file.py"
    path.write_text(source)
    return path


def test_it_is_registered_with_the_hash_of_its_content(tmp_path: Path) -> None:
    path = written(tmp_path)
    with with_files([path]):
        first = load_plugins()["method"]["mine"]
        path.write_text(SOURCE + "# changed\n")
        second = load_plugins()["method"]["mine"]
    assert first.distribution == "my-file.py"
    assert re.fullmatch(r"sha256:[0-9a-f]{12}", first.version)
    assert first.version != second.version
    assert first.origin == str(path)
    assert VARIABLE not in os.environ
    assert "mine" not in load_plugins()["method"]


def test_a_broken_file_is_a_named_problem(tmp_path: Path) -> None:
    with with_files([written(tmp_path, "import nothing_of_that_name")]):
        [problem] = load_plugins().problems
    assert (problem.plugin, problem.distribution) == ("my-file", "my-file.py")
    assert "nothing_of_that_name" in problem.message


@pytest.mark.parametrize("name", ["gone.py", "text.txt"])
def test_a_path_that_is_not_a_python_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").touch()
    with (
        pytest.raises(PrunebenchError, match="there is no Python file"),
        with_files([tmp_path / name]),
    ):
        pass


def test_a_method_that_ignores_its_allocation_fails(tmp_path: Path, run_cell) -> None:
    path = written(tmp_path, SOURCE + "\nMine.prune = lambda self, model, context: None\n")
    with with_files([path]):
        record = run_cell("mine", {"sparsity": 0.5, "allocation": "uniform"})
    assert record.status == "failed"
    assert "'mine' pruned without using the allocation 'uniform'" in record.error.message


@pytest.mark.processes
def test_a_run_uses_it_and_the_command_reproduces_the_cell(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    path = written(tmp_path)
    suite = rig.suite("mine: {sparsity: 0.25}")
    done = rig.run(suite, "--plugin", path.name, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    records, _ = RunStore.open(tmp_path / "runs" / "tiny").records()
    [record] = [record for record in records if record.cell.method.name == "mine"]
    assert record.audit.sparsity == pytest.approx(0.25, abs=0.01)
    command = record.provenance["command"]
    assert f"--plugin {path}" in command
    environment = {**os.environ, **rig.environment}
    again = subprocess.run(
        command, shell=True, cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    path.write_text(SOURCE + "# changed\n")
    with with_files([path]):
        stale = run_cell(record.cell, events=EventWriter(io.StringIO()), command="none")
    assert stale.status == "failed"
    assert "is not the file that the cell was planned with" in stale.error.message
    planned = rig.invoke("plan", suite, "--plugin", path.name)
    assert "1 done, 1 to run" in planned.stdout, planned.stdout
