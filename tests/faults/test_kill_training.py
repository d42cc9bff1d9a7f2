"""A run that is killed while it trains goes on where it was, and ends as if it had not been."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_kill import OPTIONS, start

from prunebench.store.run_folder import RunStore
from rig import Rig

pytestmark = pytest.mark.kill

EVERY_STEP = """\
import time

from prunebench.training import checkpoint
from prunebench.training.watch import Watch

checkpoint.EVERY_S = 0.0
checkpoint.SHARE = 1e12
own = Watch.stepped


def slow(self, *arguments, **named):
    own(self, *arguments, **named)
    time.sleep(0.05)


Watch.stepped = slow
"""
"""A state after each step, and steps that take a while."""
METHODS = {
    "disp-llm": "disp-llm: {ratio: 0.5, total_n_step: 60, hidden_size: 4, hn_lr: 0.1}",
    "distill": "magnitude: {sparsity: 0.5, recovery: {distill: {epochs: 60, batch_size: 2}}}",
}


def trained(rig: Rig) -> list[Any]:
    """The record of the cell that trains, if there is one: each run has a dense cell, too."""
    records, damaged = RunStore.open(rig.folder / "runs" / "tiny").records()
    assert not damaged
    return [record for record in records if record.cell.method.name != "dense"]


def states(rig: Rig) -> set[tuple[Path, int]]:
    """The states of the training, and when each was written, in ns."""
    folder = rig.folder / "runs" / "tiny" / "cells"
    found = set()
    for path in folder.glob("*.training/*/*.pt"):
        with suppress(FileNotFoundError):  # the next state replaced it
            found.add((path, path.stat().st_mtime_ns))
    return found


def killed_while_it_trains(rig: Rig, suite: Path) -> None:
    before = states(rig)
    run = start(rig, suite)
    server = psutil.Process(run.pid)
    begun = time.monotonic()
    # This run has written a state, and more steps are to come.
    while not states(rig) - before:
        assert run.poll() is None and time.monotonic() < begun + 100
        time.sleep(0.01)
    family = [*server.children(recursive=True), server]
    for process in family:
        process.kill()
    run.wait(60)
    psutil.wait_procs(family, 60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", METHODS)
def test_a_killed_training_goes_on(what: str, tmp_path: Path) -> None:
    undisturbed, killed = Rig(tmp_path / "undisturbed"), Rig(tmp_path / "killed")
    for rig in (undisturbed, killed):
        rig.plugin("everystep", EVERY_STEP)
        suite = rig.suite(METHODS[what])
    for _ in range(2):
        killed_while_it_trains(killed, suite)
        assert not trained(killed)
    for rig in (undisturbed, killed):
        done = rig.prunebench("run", "tiny.yaml", *OPTIONS)
        assert done.returncode == 0, done.stdout + done.stderr
    [expected], [found] = trained(undisturbed), trained(killed)
    name = "method_notes" if what == "disp-llm" else "recovery_notes"
    notes, wanted = getattr(found, name), getattr(expected, name)
    print(f"\n{what}: went on after step {notes['resumed_after_step']} of {notes['steps']}")
    assert 0 < notes["resumed_after_step"] < notes["steps"] == 60
    assert "resumed_after_step" not in wanted
    assert notes["loss_curve"] == wanted["loss_curve"]
    assert found.quality == expected.quality
    assert found.audit == expected.audit
    assert not list((killed.folder / "runs" / "tiny" / "cells").glob("*.partial*"))
