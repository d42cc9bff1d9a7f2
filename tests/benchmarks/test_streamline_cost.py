"""Streamline's training on states: its memory does not grow with the number of documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

LENGTH, HIDDEN = 256, 576
STATES = 2 * LENGTH * HIDDEN * 4
"""Bytes of the states of one document, in front of the window and behind it."""
CHILD = """
import json, resource, sys, time
import torch
from prunebench import Context
from prunebench.model.dense_source import CheckpointSource
from prunebench.model.fetch import fetch_checkpoint
from prunebench.model.load import load
from prunebench.model.source import resolve
from prunebench.plugin.host import load_plugins
from pathlib import Path

documents, loss = int(sys.argv[1]), sys.argv[2]
registry = load_plugins()
ref = resolve("smollm2-135m-instruct", base=Path(), assets=registry.registered("model"), dtype="float32")
folder = fetch_checkpoint(ref)
model = load(folder, dtype="float32", device="cpu").model
tokens = torch.randint(5, 40000, (documents, 256), generator=torch.Generator().manual_seed(0))
context = Context(tokens, 0, list(range(30)), dense_source=CheckpointSource(folder, "float32"))
context.remove_layers(model, range(13, 17))
kind = registry["recovery"]["streamline"].value
options = {"batch_size": 2, "gradient_accumulation_step": 2, "loss": loss}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
kind(kind.Options.model_validate(options)).recover(model, context)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": peak * 1024, "beyond": (peak - before) * 1024,
                  "seconds": time.perf_counter() - begun}))
"""


def child(documents: int, loss: str = "mse") -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(documents), loss],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(900)
def test_training_on_states_needs_those_of_one_batch_whatever_the_documents(cost) -> None:
    few, many = 4, 36
    first, second = child(few), child(many)
    grown = second["peak"] - first["peak"]
    kept = (many - few) * STATES
    print(
        f"streamline, mse: {few} documents peak at {first['peak'] / 1e6:.0f} MB, {many} at"
        f" {second['peak'] / 1e6:.0f} MB: {grown / 1e6:+.1f} MB, where the states of all documents"
        f" would take {kept / 1e6:.0f} MB; {second['seconds']:.0f} s for {many} documents"
    )
    cost(
        method="streamline, mse",
        dtype="float32",
        seconds=f"{second['seconds']:.1f}",
        yardstick="all states kept",
        ratio=f"{grown / kept:.2f}",
        limit="0.3",
        memory=f"{second['beyond'] / 1e6:.0f} MB",
    )
    assert grown <= 0.3 * kept
