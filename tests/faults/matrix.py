"""The fault matrix: run the faulty methods in one suite, and compare what the records say."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from prunebench.record.record import Record
from prunebench.store.run_folder import RunStore
from rig import Rig

PLUGIN = Path(__file__).parent / "plugin.py"
MARKER = "fault-matrix-sleeper"
LIMIT_S = 20
MEMORY_BYTES = 2_500_000_000

EXPECTED: dict[str, tuple[str, str | None, str]] = {
    "raises": ("failed", "prune", "this method cannot do it"),
    "hangs": ("timeout", "prune", f"the limit is {LIMIT_S} s"),
    "exits": ("failed", "prune", "SystemExit"),
    "os-exit": ("failed", "prune", "ended with code 0 and left no record"),
    "segfaults": ("failed", "prune", "SIGSEGV"),
    "allocates": ("out-of-memory", "prune", "the limit is 2,500,000,000"),
    "fills-disk": ("failed", "prune", "File too large"),
    "daemon": ("ok", None, "left 1 processes running"),
    "daemon-then-exit": ("failed", "prune", "ended with code 7"),
    "kills-launcher": ("failed", "prune", "launcher died"),
    "stops-launcher": ("timeout", "prune", f"the limit is {LIMIT_S} s"),
    "prints": ("ok", None, ""),
    "notes": ("ok", None, ""),
    "nan": ("failed", "check", "model.norm.weight: some weights are not finite"),
    "hook": ("failed", "check", "left a hook on model.layers.1"),
    "global-hook": ("ok", None, "left a hook on all modules"),
    "dtype": ("ok", None, "the default dtype at torch.float16, it was torch.float32; restored"),
    "threads": ("ok", None, "the number of threads at 2, it was 1; restored"),
    "seeds": ("ok", None, "torch's seed at 12345, it was 0; restored"),
    "gradients": ("ok", None, "left gradients on"),
    "tf32": ("ok", None, "the precision of float32 products"),
    "process-state": ("ok", None, "OMP_NUM_THREADS"),
}
"""Status, phase, and part of the error or of a flag."""


@dataclass(frozen=True)
class Run:
    rig: Rig
    process: subprocess.CompletedProcess[str]
    left: int
    """How many processes of the faulty methods still run."""

    @property
    def records(self) -> dict[str, Record]:
        good, damaged = RunStore.open(self.rig.folder / "runs" / "tiny").records()
        assert not damaged
        return {record.cell.method.name: record for record in good}


def run(folder: Path, faults: tuple[str, ...]) -> Run:
    """Run a suite of these faults with sound cells before, between and after them."""
    rig = Rig(folder)
    rig.plugin("faults", PLUGIN.read_text())
    half = len(faults) // 2
    methods = [
        "magnitude: {sparsity: 0.5}",
        *faults[:half],
        "sound",
        *faults[half:],
        "random: {sparsity: 0.5}",
    ]
    limits = f"limits: {{time_s: {LIMIT_S}, memory: 2.5 GB}}\n"
    suite = rig.suite(*methods, more=limits)
    process = rig.prunebench("run", suite)
    left = [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if any(MARKER in one for one in each.info["cmdline"] or ())
    ]
    return Run(rig, process, len(left))


def outcome(record: Record) -> dict[str, Any]:
    """What must not depend on the cells that ran before."""
    data = json.loads(record.model_dump_json(include={"id", "status", "audit", "quality"}))
    assert record.audit and record.quality
    return data


def said(record: Record) -> str:
    """The error, or the flags."""
    return (
        f"{record.error.type}: {record.error.message}" if record.error else "; ".join(record.flags)
    )


def table(found: Run, unchanged: bool) -> str:
    """The matrix as text."""
    lines = [f"{'fault':17} {'status':14} {'phase':8} {'peak':>8}  {'cause or flags'}"]
    for name, record in found.records.items():
        if name in EXPECTED:
            peak = (
                record.error.peak_rss_bytes
                if record.error
                else record.memory and record.memory.peak_rss_bytes
            )
            phase = record.error.phase if record.error else "-"
            cause = re.sub(r"\s+", " ", said(record))
            lines.append(
                f"{name:17} {record.status:14} {phase:8} {(peak or 0) / 1e6:5.0f} MB  {cause[:110]}"
            )
    lines.append(
        f"left-over processes: {found.left}; other cells as without faults: {'yes' if unchanged else 'NO'}"
    )
    return "\n".join(lines)
