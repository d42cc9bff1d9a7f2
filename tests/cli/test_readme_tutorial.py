"""The README's tutorial for authors, run as it stands: from nothing to a report with one's own method in it:
`tox run -e thirdparty`.
"""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import prunebench
from rig import Rig

pytestmark = pytest.mark.thirdparty

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(language: str, words: str) -> str:
    [found] = [
        code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if words in code
    ]
    return found


@pytest.mark.timeout(300)
def test_the_commands_end_in_a_comparison(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for line in block("sh", "plugins new").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cd":
            rig.folder = rig.folder / arguments[0]
            continue
        assert program == "prunebench"
        if arguments[:2] == ["plugins", "check"]:
            arguments += ["--family", "llama"]  # the others are tried elsewhere
        done = rig.prunebench(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    page = (rig.folder / "runs" / "prunebench-my-idea" / "report.html").read_text()
    for label in ("magnitude sparsity=0.5", "wanda sparsity=0.5", "my-idea sparsity=0.5"):
        assert label in page


def test_the_watcher_keeps_a_table(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "cells_to_csv.py").write_text(block("python", "prunebench_cell_finished"))
    done = rig.prunebench("run", rig.suite("random"), "--plugin", "cells_to_csv.py", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.reader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [(row[2], row[3]) for row in rows] == [("dense", "ok"), ("random", "ok")]
    assert all(float(row[4]) > 1 for row in rows)


def test_the_notebook_gives_tables(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    code = block("python", "load_run").replace('["wanda*", "magnitude*"]', '["magnitude*"]')
    names = {"prunebench": prunebench}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["frame"], pd.DataFrame)
    assert list(names["frame"]["method"]) == ["dense", "magnitude"]
