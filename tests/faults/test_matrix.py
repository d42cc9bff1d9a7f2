"""Every fault is one failed record with phase and cause, and no other cell notices.

`tox run -e faults` runs this.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from faults import matrix

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SOUND = ("dense", "magnitude", "sound", "random")


def check(found: matrix.Run, faults: tuple[str, ...]) -> None:
    assert found.process.returncode == 1, found.process.stdout + found.process.stderr
    assert "Traceback" not in found.process.stdout + found.process.stderr
    records = found.records
    assert set(records) == {*faults, *SOUND}
    for name in faults:
        status, phase, words = matrix.EXPECTED[name]
        record = records[name]
        assert record.status == status, (name, matrix.said(record))
        assert words in matrix.said(record), name
        if record.error is not None:
            assert record.error.phase == phase, name
            assert record.error.command.endswith(f"{record.id}.json"), name
            assert name == "kills-launcher" or (record.error.peak_rss_bytes or 0) > 50_000_000, name
    assert all(records[name].status == "ok" and not records[name].flags for name in SOUND)
    assert found.left == 0


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> matrix.Run:
    return matrix.run(tmp_path_factory.mktemp("faulty"), tuple(matrix.EXPECTED))


def test_the_whole_matrix(faulty: matrix.Run, tmp_path: Path) -> None:
    alone = matrix.run(tmp_path, ())
    same = all(
        matrix.outcome(faulty.records[name]) == matrix.outcome(alone.records[name])
        for name in SOUND
    )
    print()
    print(matrix.table(faulty, same))
    check(faulty, tuple(matrix.EXPECTED))
    assert same


def test_flags_are_in_the_report(faulty: matrix.Run) -> None:
    page = (faulty.rig.folder / "runs" / "tiny" / "report.html").read_text()
    assert "A plugin left side effects behind or could not measure a figure in" in page
    assert "changed the environment: OMP_NUM_THREADS, PRUNEBENCH_CACHE; restored" in page


def test_the_command_on_a_record_reproduces_its_failure(faulty: matrix.Run) -> None:
    error = faulty.records["hook"].error
    assert error is not None
    environment = {**os.environ, **faulty.rig.environment}
    again = subprocess.run(
        error.command, shell=True, capture_output=True, text=True, timeout=100, env=environment
    )
    assert again.returncode == 1
    assert "left a hook on model.layers.1" in again.stdout
