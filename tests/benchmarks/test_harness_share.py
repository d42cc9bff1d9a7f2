"""What the harness itself costs: the time of a run outside load, prune and measure."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench

CELLS = ("dense", "wanda", "shortgpt")
"""Of the suite quickstart, whose eight cells take four minutes."""


def test_the_harness_takes_a_small_part_of_a_run(tmp_path: Path, figure: Any) -> None:
    """The first run fills the cache with wheels and the converted model; the second is timed.

    The start of a run, three seconds of it the import of lm-eval, is divided among the cells: among
    eight it is less than five percent.
    """

    def command(folder: str, *cells: str) -> list[str]:
        only = [part for cell in cells for part in ("--only", cell)]
        out = str(tmp_path / folder)
        return [sys.executable, "-m", "prunebench", "run", "quickstart", *only, "--out", out]

    subprocess.run(command("warm", "dense"), check=True)
    begun = time.perf_counter()
    done = subprocess.run(command("run", *CELLS), check=True, capture_output=True, text=True)
    wall = time.perf_counter() - begun
    share = re.search(r"([\d.]+) s in all, ([\d.]+) s of it", done.stdout)
    assert share is not None
    # The interpreter's start belongs to the harness too.
    own = (float(share[2]) + wall - float(share[1])) / wall
    figure(
        f"{len(CELLS)} cells of quickstart, the harness's own share",
        f"{own:.1%} of {wall:.0f} s",
        "less than 8 %",
    )
    assert own < 0.08
