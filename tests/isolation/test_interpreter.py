"""The working folder plays no part: a user's files there are never imported in place of a library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.isolation.interpreter import code_command, leave_working_folder, module_command
from prunebench.store.run_folder import RunStore
from readmes import ROOT
from rig import Rig

USERS_FILES = (
    # what the runs of others fell over
    *("random", "profile", "tokenizers", "datasets", "peft", "torch", "transformers", "json"),
    *("logging", "click", "rich", "yaml", "pydantic", "pluggy", "numpy", "pandas", "matplotlib"),
    *("jinja2", "psutil", "tempfile", "subprocess", "signal", "uuid", "threading", "email"),
    *("lm_eval", "pip", "accelerate", "safetensors", "prunebench_plugins", "prunebench_report"),
)
"""Modules that prunebench or a library imports, and that the user has files of the same name for."""
LIBRARY = str(Path(os.__file__).parent)


def users_folder(folder: Path) -> Path:
    for name in USERS_FILES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user''s own {name}.py')\n")
    return folder


@pytest.mark.processes
def test_a_run_in_a_folder_with_such_files_is_like_any_other(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig")
    users_folder(rig.folder)
    suite = rig.suite("magnitude: {sparsity: 0.5}", latency=True)
    done = rig.prunebench("run", suite)
    assert done.returncode == 0, done.stdout + done.stderr
    records, _ = RunStore.open(rig.folder / "runs" / "tiny").records()
    assert [record.status for record in records] == ["ok", "ok"]
    # The memory sampler is a process of its own, too; without it only `getrusage` is left.
    assert all(record.memory.source.startswith("own process") for record in records)
    # The command on the record works in that folder.
    again = subprocess.run(
        records[0].provenance["command"],
        cwd=rig.folder,
        env={**os.environ, **rig.environment},
        shell=True,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [("plan", "smoke"), ("plugins",), ("doctor", "--offline")])
def test_other_commands_run_there_too(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # An empty part of PYTHONPATH is the working folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", str(tmp_path / "elsewhere")])}
    for python in ([sys.executable, "-P", "-c", "from prunebench.cli import main; main()"], None):
        done = subprocess.run(
            [*(python or [sys.executable, "-m", "prunebench"]), *arguments],
            cwd=users_folder(tmp_path),
            env=environment if python is None else os.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_pip_runs_there_too(tmp_path: Path) -> None:
    done = subprocess.run(
        module_command("pip", "--version"), cwd=users_folder(tmp_path), capture_output=True
    )
    assert done.returncode == 0
    assert subprocess.run(code_command("import random"), cwd=tmp_path, check=False).returncode == 0


def test_only_the_working_folder_leaves_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    # The last entry is that of a package which is installed from here.
    path = [here, "/opt/lib", here, "", LIBRARY, "/site-packages", here]
    environment = {"PYTHONPATH": os.pathsep.join(["/opt/lib", "", ""])}
    leave_working_folder(path, environment)
    assert path == ["/opt/lib", LIBRARY, "/site-packages", here]
    assert environment == {"PYTHONPATH": "/opt/lib"}


@pytest.mark.parametrize("named", [".", None])
def test_a_folder_that_pythonpath_names_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = [str(tmp_path), LIBRARY]
    environment = {"PYTHONPATH": named or str(tmp_path)}
    leave_working_folder(path, environment)
    assert path == [str(tmp_path), LIBRARY]
    assert environment == {"PYTHONPATH": named or str(tmp_path)}


def test_nothing_starts_an_interpreter_in_another_way() -> None:
    package = ROOT / "harness" / "prunebench"
    for source in package.rglob("*.py"):
        starts = "[sys.executable" in source.read_text(encoding="utf-8")
        assert not starts or source.name == "interpreter.py", source
