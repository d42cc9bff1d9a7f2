"""What twenty cells of one model cost beyond their pruning and their quality."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

# Quality as in the suite quickstart, without the generation that takes most of its time there.
SUITE = """\
name: many
models: smollm2-135m-instruct
methods:
  - magnitude: {sparsity: [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55]}
  - wanda: {sparsity: [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]}
calibration: {corpus: boolq-passages, windows: 4, length: 384}
quality:
  perplexity: {corpus: boolq-passages, windows: 8, length: 512}
  tasks: {task: [piqa, arc_easy], data: zeroshot-assets, limit: 16}
  metrics: [kl-divergence, draft-acceptance]
profile: {latency: null}
device: cpu
"""
WORK = ("prune", "perplexity", "tasks", "metrics")


def test_twenty_cells(tmp_path: Path, figure) -> None:
    """The dense cell is one of them, and fills the cache for the others."""
    (tmp_path / "many.yaml").write_text(SUITE)
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "prunebench", "run", "many.yaml", "--out", "run"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    wall = time.perf_counter() - begun
    phases: Counter[str] = Counter()
    for path in (tmp_path / "run" / "cells").glob("*.json"):
        for one in json.loads(path.read_text())["cost"]["phases"]:
            phases[one["phase"]] += one["seconds"]
    work = sum(phases[name] for name in WORK)
    for name, spent in phases.most_common():
        print(f"  {name}: {spent:.1f} s")
    figure(
        "20 cells of one model / their pruning and quality",
        f"{wall / work:.3f} ({wall:.0f} s of {work:.0f})",
        "at most 1.1",
    )
    assert wall <= 1.1 * work
