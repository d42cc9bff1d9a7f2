"""What the harness itself costs: the time outside load, prune and measure."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench


def test_quickstart_in_six_minutes_and_the_harness_below_five_percent(
    tmp_path: Path, figure: Any
) -> None:
    """The first run fills the cache with wheels and the converted model; the second is timed."""
    command = [sys.executable, "-m", "prunebench", "run", "quickstart"]
    warm = [*command, "--out", str(tmp_path / "warm"), "--only", "dense"]
    for least in (
        "quality.perplexity.windows=1",
        "quality.tasks.limit=1",
        "quality.metrics=[]",
        "profile.latency=null",
    ):
        warm += ["--set", least]
    subprocess.run(warm, check=True)
    begun = time.perf_counter()
    out = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], check=True, capture_output=True, text=True
    ).stdout
    wall = time.perf_counter() - begun
    print(out)
    share = re.search(r"([\d.]+) s in all, ([\d.]+) s of it", out)
    assert share is not None
    # The interpreter's start belongs to the harness too, and so do three seconds for lm-eval,
    # imported once, which every cell would spend by itself.
    own = (float(share[2]) + wall - float(share[1])) / wall
    figure("quickstart", f"{wall:.0f} s, {own:.1%} of it the harness's own", "360 s, 5 %")
    assert wall < 360
    assert own < 0.05
