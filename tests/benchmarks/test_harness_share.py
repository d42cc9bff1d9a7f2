"""What the harness itself costs: the time outside load, prune and measure."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench


def test_quickstart_in_six_minutes_and_the_harness_below_five_percent(tmp_path: Path) -> None:
    """The first run fills the cache with wheels and the converted model; the second is timed."""
    command = [sys.executable, "-m", "prunebench", "run", "quickstart"]
    subprocess.run([*command, "--out", str(tmp_path / "warm"), "--only", "dense"], check=True)
    begun = time.perf_counter()
    out = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], check=True, capture_output=True, text=True
    ).stdout
    wall = time.perf_counter() - begun
    print(out)
    share = re.search(r"([\d.]+) s in all, ([\d.]+) s of it", out)
    assert share is not None
    own = (
        float(share[2]) + wall - float(share[1])
    ) / wall  # the interpreter's start belongs to the harness too
    print(f"quickstart: {wall:.0f} s, the harness's own share {own:.2%} (at most 5 %)")
    assert wall < 360
    assert (
        own < 0.05
    )  # of it three seconds for lm-eval, imported once, which every cell would spend by itself
