"""The command line as a whole: errors and completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("options", [[], ["--verbose"]])
def test_verbose_adds_the_traceback_to_an_error(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "prunebench", *options, "plan", "gone.yaml"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "there is no suite" in told.stderr
    assert ("Traceback" in told.stderr) == bool(options)


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
        check=False,
    )
    assert done.stdout.split() == ["plain,plan", "plain,plugins"]
