"""`prunebench run smoke`: every method end to end in seconds, without a network, with two seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.store.run_folder import RunStore
from rig import QUIET

METHODS = {
    "dense",
    "random",
    "magnitude",
    "wanda",
    "sparsegpt",
    "llm-pruner",
    "blockpruner",
    "shortgpt",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("smoke")
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    (where / "site").mkdir()
    (where / "site" / "sitecustomize.py").write_text(QUIET)
    environment = {
        "PYTHONPATH": str(where / "site"),
        "PRUNEBENCH_CACHE": str(where / "cache"),
        "PIP_NO_INDEX": "1",
        "HF_HUB_OFFLINE": "1",
        **closed,
    }
    done = subprocess.run(
        [sys.executable, "-m", "prunebench", "run", "smoke"],
        cwd=where,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return where / "runs" / "smoke"


def test_every_method_has_a_result_and_the_report_shows_it(folder: Path) -> None:
    records, damaged = RunStore.open(folder).records()
    assert not damaged
    assert {record.status for record in records} == {"ok"}
    assert {record.cell.method.name for record in records} == METHODS
    page = (folder / "report.html").read_text()
    assert "mean of 2 seeds" in page
    assert "Seed by seed: 8 cells" in page


def test_the_seed_is_that_of_the_calibration_and_never_of_the_evaluation(folder: Path) -> None:
    records, _ = RunStore.open(folder).records()
    evaluated = {one.tokens_sha256 for record in records for one in record.quality.perplexity}
    assert len(evaluated) == 1
    for method in ("wanda", "sparsegpt", "llm-pruner"):
        pair = [record for record in records if record.cell.method.name == method]
        assert [record.cell.seed for record in pair] == [0, 1]
        assert len({record.cost.calibration_sha256 for record in pair}) == 2
        assert len({record.quality.perplexity[0].nll for record in pair}) == 2
