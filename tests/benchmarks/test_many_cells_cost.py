"""What the cells of one model cost beyond their pruning and their quality.

In CPU time of all processes of the run, which other programs on the machine disturb least. Twenty
cells take nine minutes on one core, so seven are run. Their ratio is the higher one, because the
start of the run is divided among fewer cells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cpu_time import cpu_seconds_of_children

pytestmark = pytest.mark.bench

# Quality as in the suite quickstart, without the generation that takes most of its time there.
SUITE = """\
name: many
models: smollm2-135m-instruct
methods:
  - magnitude: {sparsity: [0.1, 0.3, 0.5]}
  - wanda: {sparsity: [0.1, 0.3, 0.5]}
calibration: {corpus: boolq-passages, windows: 4, length: 384}
quality:
  perplexity: {corpus: boolq-passages, windows: 8, length: 512}
  tasks: {task: [piqa, arc_easy], data: zeroshot-assets, limit: 16}
  metrics: [kl-divergence, draft-acceptance]
profile: {latency: null}
device: cpu
"""
WORK = ("prune", "perplexity", "tasks", "metrics")


def test_the_cells_of_one_model(tmp_path: Path, figure) -> None:
    """The dense cell is one of them, and fills the cache for the others."""
    (tmp_path / "many.yaml").write_text(SUITE)
    before = cpu_seconds_of_children()
    subprocess.run(
        [sys.executable, "-m", "prunebench", "run", "many.yaml", "--out", "run"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    whole = cpu_seconds_of_children() - before
    phases: Counter[str] = Counter()
    cells = list((tmp_path / "run" / "cells").glob("*.json"))
    for path in cells:
        for one in json.loads(path.read_text())["cost"]["phases"]:
            phases[one["phase"]] += one["cpu_s"]
    for name, spent in phases.most_common():
        print(f"  {name}: {spent:.1f} s")
    print(f"  outside of the phases: {whole - phases.total():.1f} s")
    work = sum(phases[name] for name in WORK)
    figure(
        f"{len(cells)} cells of one model / their pruning and quality, CPU time",
        f"{whole / work:.3f} ({whole:.0f} s of {work:.0f})",
        "at most 1.1",
    )
    assert len(cells) == 7
    assert whole <= 1.1 * work
