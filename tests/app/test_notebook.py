"""`prunebench.run` and `load_run`: a suite in, a DataFrame out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import prunebench
from prunebench.plugin.scaffold import write_package

TEXT = {"corpus": "tiny-text", "windows": 2, "length": 32}
SUITE = {
    "name": "from-python",
    "models": "tiny-llama",
    "methods": [{"magnitude": {"sparsity": 0.5}}, {"mine": {"sparsity": 0.5}}],
    "calibration": TEXT,
    "quality": {"perplexity": TEXT},
    "profile": {"latency": {"prompt": 8, "new_tokens": 2, "min_rounds": 1, "min_time_s": 0.0}},
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("notebook")
    plugin = write_package("mine", "method", folder) / "prunebench_mine.py"
    return folder, prunebench.run(SUITE, out=folder / "run", plugins=[plugin])


def test_a_run_returns_a_table_with_one_row_per_cell(ran) -> None:
    folder, frame = ran
    assert list(frame["method"]) == ["dense", "magnitude", "mine"]
    assert set(frame["status"]) == {"ok"}
    assert frame.loc[1, "sparsity"] == pytest.approx(0.5)
    assert frame["perplexity"].dtype == "Float64"
    assert (folder / "run" / "report.html").is_file()
    assert frame.loc[2, "version"].startswith("sha256:")


def test_a_run_is_read_without_its_plugins(ran) -> None:
    folder, frame = ran
    pd.testing.assert_frame_equal(prunebench.load_run(folder / "run"), frame)


def test_cells_with_a_result_are_not_run_again(ran) -> None:
    folder, frame = ran
    record = next((folder / "run" / "cells").glob("*.json"))
    before = record.stat().st_mtime_ns
    alone = {**SUITE, "methods": [{"magnitude": {"sparsity": 0.5}}]}
    again = prunebench.run(alone, out=folder / "run", report=False)
    assert record.stat().st_mtime_ns == before
    assert list(again["cell"]) == list(frame["cell"][:2])


def test_bad_input_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(prunebench.PrunebenchError, match="unknown method 'mien'"):
        prunebench.run({**SUITE, "methods": ["mien"]}, out=tmp_path / "run")
    with pytest.raises(prunebench.PrunebenchError, match="give one name"):
        prunebench.run(SUITE, out=tmp_path / "run", engine={"local": {}, "ray": {}})
    assert not (tmp_path / "run").exists()
    with pytest.raises(prunebench.PrunebenchError, match="not a run"):
        prunebench.load_run(tmp_path)
