"""A run in miniature: a tiny checkpoint, a text file, a suite, and plugins for its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from cli_calls import call
from in_process import FILE
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
  latency: {latency}
device: cpu
threads: 1
{more}
"""
QUIET = """\
from prunebench.measure.devices import disturbance

disturbance.CpuWatch.disturbed = lambda *_: None
disturbance.TOLERANCE = float("inf")
"""
"""A `sitecustomize`: timed rounds count as undisturbed, whatever else the machine does."""
SHAPE = "{prompt: 8, new_tokens: 4, batch_size: 1, min_rounds: 2, min_time_s: 0}"


@dataclass
class Rig:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tiny_checkpoint(self.folder / "model", "llama")
        (self.folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
        (self.folder / "site").mkdir(exist_ok=True)
        (self.folder / "site" / "sitecustomize.py").write_text(QUIET)
        self.environment |= {
            "PRUNEBENCH_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": str(self.folder / "site"),
            "OMP_NUM_THREADS": "1",
        }

    def plugin(self, name: str, source: str) -> None:
        """Install ``source`` as a plugin of the distribution NAME 1.0 for this rig's processes."""
        info = self.folder / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[prunebench]\n{name} = {name}_plugin\n")
        (self.folder / "site" / f"{name}_plugin.py").write_text(source)

    def suite(self, *methods: str, more: str = "", latency: bool = False) -> Path:
        """Write tiny.yaml. With ``latency`` its cells are timed too, which takes a second each."""
        path = self.folder / "tiny.yaml"
        listed = "\n".join(f"  - {method}" for method in methods)
        shape = SHAPE if latency else "null"
        path.write_text(SUITE.format(methods=listed, latency=shape, more=more))
        return path

    def prunebench(self, *arguments: str | Path) -> CompletedProcess[str]:
        """Run the command line as a user would, in the rig's folder."""
        return subprocess.run(
            [sys.executable, "-m", "prunebench", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )

    def invoke(self, *arguments: str | Path) -> CompletedProcess[str]:
        """Run the command line in this process, in the rig's folder and with its plugins."""
        before = signal.getsignal(signal.SIGTERM)  # `run` sets a handler
        site = str(self.folder / "site")
        with (
            chdir(self.folder),
            mock.patch.dict(os.environ, self.environment),
            mock.patch.object(sys, "path", [site, *sys.path]),
        ):
            try:
                done = call(*arguments)
            finally:
                signal.signal(signal.SIGTERM, before)
                for name, module in list(sys.modules.items()):  # another rig has others
                    if (getattr(module, "__file__", None) or "").startswith(site):
                        del sys.modules[name]
        return CompletedProcess(["prunebench", *map(str, arguments)], *done)

    def run(self, *arguments: str | Path) -> CompletedProcess[str]:
        """`prunebench run` in this process, cells too: quick, but without isolation."""
        engine = ("--plugin", FILE, "--engine", "in-process")
        return self.invoke("run", *arguments, *engine)
