"""A run that is killed at any moment can be continued: no cell is lost, repeated or half read.

`tox run -e kill` kills a hundred times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from prunebench.store.run_folder import RunStore
from rig import Rig

METHODS = [
    "magnitude: {sparsity: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}",
    "random: {sparsity: [0.2, 0.4, 0.6]}",
]
CELLS = 10
OPTIONS = ("--no-report",)


def start(rig: Rig, suite: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "prunebench", "run", str(suite), *OPTIONS],
        cwd=rig.folder,
        env={**os.environ, **rig.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def results(rig: Rig) -> dict[str, Any]:
    """What the final table is made of, by cell id, without times: these differ from run to run."""
    records, damaged = RunStore.open(rig.folder / "runs" / "tiny").records()
    assert not damaged
    return {
        record.id: json.loads(
            record.model_dump_json(include={"id", "status", "audit", "quality", "flags"})
        )
        for record in records
    }


def written(rig: Rig) -> dict[str, int]:
    """When each record was written, in ns."""
    folder = rig.folder / "runs" / "tiny" / "cells"
    records = [
        path
        for path in folder.glob("*.json")
        if not path.name.endswith(".partial.json") and path.name[0] != "."
    ]
    return {path.stem: path.stat().st_mtime_ns for path in records}


def victim(run: subprocess.Popen[bytes], whom: str) -> int:
    """The run itself, its fork server, or the cell that runs now; the run if there is no such."""
    try:
        servers = psutil.Process(run.pid).children()
        cells = [cell for server in servers for cell in server.children()]
        found = {"run": [], "fork server": servers, "cell": cells}[whom]
        return found[0].pid if found else run.pid
    except psutil.NoSuchProcess:
        return run.pid


def kill_until_done(rig: Rig, kills: int, seed: int, longest_s: float) -> Counter[str]:
    """Run and kill in turns until ``kills`` have struck; delete the results whenever all are there."""
    chance = random.Random(seed)
    suite = rig.suite(*METHODS)
    counts: Counter[str] = Counter()
    before: dict[str, int] = {}
    while counts["kills"] < kills:
        run = start(rig, suite)
        whom = chance.choice(["run", "run", "fork server", "cell"])
        time.sleep(chance.uniform(0.0, longest_s))
        deadline = time.monotonic() + 20
        while (
            whom == "cell"
            and victim(run, whom) == run.pid
            and run.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)  # there is none before the imports
        if run.poll() is None:
            target = victim(run, whom)
            os.kill(target, signal.SIGKILL)
            counts["kills"] += 1
            counts[f"of the {'run' if target == run.pid else whom}"] += 1
            if target != run.pid:
                time.sleep(chance.uniform(0.0, 0.5))
                run.kill()
        run.wait(300)
        counts["runs"] += 1
        after = written(rig)
        good = (
            {cell for cell, record in results(rig).items() if record["status"] == "ok"}
            if after
            else set()
        )
        assert before.keys() <= after.keys(), "a finished cell was lost"
        assert all(after[cell] == moment for cell, moment in before.items()), (
            "a finished cell was run again"
        )
        counts["cells finished between kills"] += len(good - before.keys())
        before = {cell: moment for cell, moment in after.items() if cell in good}
        if len(before) == CELLS:
            counts["complete tables"] += 1
            for cell in before:
                RunStore(rig.folder / "runs" / "tiny").record_path(cell).unlink()
            before = {}
    return counts


def finish(rig: Rig) -> None:
    """Complete the run; a cell that was killed alone is a failed record, which this repeats."""
    done = rig.prunebench("run", "tiny.yaml", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = rig.folder / "runs" / "tiny"
    assert not (folder / "scratch").exists()
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], (
        "half-written files stay"
    )
    assert not list((folder / "cells").glob("*.partial.json"))


def compare(folder: Path, kills: int) -> Counter[str]:
    undisturbed, killed = Rig(folder / "undisturbed"), Rig(folder / "killed")
    undisturbed.suite(*METHODS)
    begun = time.monotonic()
    finish(undisturbed)
    counts = kill_until_done(killed, kills, seed=5, longest_s=0.8 * (time.monotonic() - begun))
    finish(killed)
    first, second = results(undisturbed), results(killed)
    assert len(first) == CELLS
    assert first == second
    left = [process for process in psutil.process_iter(["environ"]) if of(process, killed)]
    assert not left
    return counts


def of(process: psutil.Process, rig: Rig) -> bool:
    """Whether a living process was started for this rig."""
    environment = process.info["environ"] or {}
    return (
        environment.get("PRUNEBENCH_CACHE") == rig.environment["PRUNEBENCH_CACHE"]
        and process.status() != "zombie"
    )


@pytest.mark.kill
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    counts = compare(tmp_path, kills=int(os.environ.get("PRUNEBENCH_KILLS", "100")))
    print()
    for name, count in counts.items():
        print(f"{count:5} {name}")
    print(
        "    0 finished cells lost, 0 repeated, 0 half-written records read; the table equals the undisturbed run's"
    )
