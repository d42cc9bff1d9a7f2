"""The guide for authors, followed as it is written: `tox run -e thirdparty`."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from readmes import block
from rig import Rig

pytestmark = pytest.mark.thirdparty


@pytest.mark.timeout(300)
def test_the_four_commands_end_in_a_comparison(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for line in block("sh", "cd prunebench-my-idea").code.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cd":
            rig.folder = rig.folder / arguments[0]
            continue
        assert program == "prunebench"
        if arguments[:2] == ["plugins", "check"]:
            arguments += ["--family", "llama"]  # tests/testing tries the other families
        done = rig.prunebench(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    page = (rig.folder / "runs" / "prunebench-my-idea" / "report.html").read_text()
    for label in ("magnitude sparsity=0.5", "wanda sparsity=0.5", "my-idea sparsity=0.5"):
        assert label in page


@pytest.mark.timeout(300)
def test_the_plugin_of_the_front_page_keeps_the_contract(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "mine.py").write_text(block("python", "class Mine").code)
    done = rig.prunebench("plugins", "check", "mine", "--plugin", "mine.py", "--family", "llama")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_watcher_writes_a_table_during_a_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "cells_to_csv.py").write_text(block("python", "prunebench_cell_finished").code)
    done = rig.prunebench("run", rig.suite("random"), "--plugin", "cells_to_csv.py", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.reader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [(row[1], row[2]) for row in rows] == [("dense", "ok"), ("random", "ok")]
    assert all(float(row[3]) > 1 for row in rows)
