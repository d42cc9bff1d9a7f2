"""A run in miniature: a tiny checkpoint, a text file, a suite, and plugins that a process started by a test finds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tiny import tiny_checkpoint

SUITE = """\
name: tiny
models: ./model
methods:
{methods}
calibration: {{corpus: text.txt, windows: 2, length: 16}}
quality:
  perplexity: {{corpus: text.txt, windows: 2, length: 16}}
profile:
  latency: {{prompt: 8, new_tokens: 4, batch_size: 1, min_rounds: 2, min_time_s: 0}}
device: cpu
threads: 1
{more}
"""


@dataclass
class Rig:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tiny_checkpoint(self.folder / "model", "llama")
        (self.folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
        self.environment |= {
            "PRUNEBENCH_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": str(self.folder / "site"),
            "OMP_NUM_THREADS": "1",
        }

    def plugin(self, name: str, source: str) -> None:
        """Make ``source`` an installed plugin of the distribution NAME 1.0 for the processes that this rig starts."""
        info = self.folder / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[prunebench]\n{name} = {name}_plugin\n")
        (self.folder / "site" / f"{name}_plugin.py").write_text(source)

    def suite(self, *methods: str, more: str = "") -> Path:
        path = self.folder / "tiny.yaml"
        path.write_text(
            SUITE.format(methods="\n".join(f"  - {method}" for method in methods), more=more)
        )
        return path

    def prunebench(
        self, *arguments: str | Path, timeout_s: float = 110
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line as a user would, in the rig's folder."""
        return subprocess.run(
            [sys.executable, "-m", "prunebench", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
