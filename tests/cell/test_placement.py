"""Models on host memory and disk: the same numbers, the placement on the record, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunebench
from evaluation import SPEC, windows_of
from prunebench.errors import PrunebenchError
from prunebench.experiment.model import Placement
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.tasks import _language_model
from prunebench.measure.speed.execution import choose
from prunebench.model.load import load, load_dispatched
from prunebench.model.placement import input_device, is_dispatched
from rig import Rig
from tiny import FAMILIES, tiny_checkpoint, tiny_tokenizer

IDS = torch.arange(2, 26).view(2, 12)
SMALL, HALF, LARGE = 40_000, 250_000, 10**9
SUITE = """\
name: devices
models:
  - {model: ./model, name: whole}
  - {model: ./model, name: disk, device_map: auto, max_memory: {cpu: 40 kB}}
  - {model: ./model, name: roomy, device_map: auto, max_memory: {cpu: 2 GB}}
methods: [wanda: {sparsity: 0.5}]
calibration: {corpus: text.txt, windows: 2, length: 16}
quality: {perplexity: {corpus: text.txt, windows: 4, length: 16}}
profile: {latency: {prompt: 8, new_tokens: 4, batch_size: 2, min_rounds: 2, min_time_s: 0}}
device: cpu
threads: 1
"""


def placement(size: int) -> Placement:
    return Placement(max_memory=(("cpu", size),))


def dispatched(folder: Path, size: int) -> Any:
    return load_dispatched(folder, dtype="float32", device="cpu", placement=placement(size)).model


@pytest.mark.parametrize("size", [SMALL, HALF, LARGE])
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_does_not_depend_on_the_devices(family: str, size: int, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family)
    whole = load(tmp_path, dtype="float32", device="cpu").model
    model = dispatched(tmp_path, size)
    assert is_dispatched(model) == (size != LARGE)
    assert input_device(model) == torch.device("cpu")
    windows = windows_of(IDS)
    assert perplexity(model, windows, SPEC) == perplexity(whole, windows, SPEC)


def test_a_model_on_several_devices_runs_eagerly(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    model = dispatched(tmp_path, SMALL)
    chosen = choose([model], IDS, 3)
    assert chosen.form == "eager"
    assert chosen.notes == ["the model is on several devices: eager is the only form there"]
    with pytest.raises(PrunebenchError, match="execution 'lean': the model is on several devices"):
        choose([model], IDS, 3, "lean")


def test_tasks_send_their_tokens_to_the_device_that_computes(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    assert _language_model(dispatched(tmp_path, SMALL), tiny_tokenizer()).device == torch.device(
        "cpu"
    )


@pytest.mark.streaming
def test_a_run_over_models_in_memory_on_disk_and_in_a_large_budget(tmp_path: Path) -> None:
    """Dense runs from disk, a method is refused there, and prunes as usual if there is room."""
    rig = Rig(tmp_path)
    (tmp_path / "devices.yaml").write_text(SUITE)
    done = rig.prunebench("run", "devices.yaml", "--out", "runs")
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in (tmp_path / "runs" / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        if "cell" in record:
            found[record["cell"]["model"]["name"], record["cell"]["method"]["name"]] = record

    whole, disk = found["whole", "dense"], found["disk", "dense"]
    assert disk["status"] == "ok", disk["error"]
    assert disk["provenance"]["placement"] == {"disk": 4}
    assert "placement" not in whole["provenance"]
    assert disk["quality"]["perplexity"][0]["nll"] == whole["quality"]["perplexity"][0]["nll"]
    assert disk["audit"] == whole["audit"]
    [latency] = disk["speed"]["latency"]
    assert latency["execution"] == "eager"
    assert "on several devices" in latency["execution_notes"][0]
    assert disk["io"]["generation"] == []
    assert disk["speed"]["breakdown"] is None

    refused = found["disk", "wanda"]
    assert refused["status"] == "failed"
    assert "of host memory, and it may have 4e-05 GB" in refused["error"]["message"]
    assert "prunebench prune MODEL METHOD --stream" in refused["error"]["hint"]

    pruned, roomy = found["whole", "wanda"], found["roomy", "wanda"]
    assert roomy["provenance"]["placement"] == {"cpu": 4}
    assert roomy["quality"]["perplexity"][0]["nll"] == pruned["quality"]["perplexity"][0]["nll"]
    assert roomy["audit"] == pruned["audit"]
    assert roomy["id"] != pruned["id"]
    assert "4 layers on disk" in (tmp_path / "runs" / "report.html").read_text()


@pytest.mark.streaming
def test_a_streamed_model_is_measured_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How to prune and measure a checkpoint that fits in no memory."""
    Rig(tmp_path)
    monkeypatch.chdir(tmp_path)
    pruned = prunebench.prune(
        "model",
        "wanda",
        options={"sparsity": "2:4"},
        calibration={"corpus": "text.txt", "windows": 2, "length": 16},
        out="pruned",
        stream=True,
        shard_size="100 kB",
    )
    model = dispatched(tmp_path / "pruned", SMALL)
    whole = prunebench.load_pruned("pruned")
    assert torch.equal(model(IDS).logits, whole(IDS).logits)
    assert pruned.audit.sparsity == 0.5


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            "{model: ./model, max_memory: {cpu: 1 GB}}",
            "`max_memory` is for models with a device_map",
        ),
        ("{model: ./model, device_map: balanced}", "device_map"),
        ("{model: ./model, device_map: auto, max_memory: {tpu: 1 GB}}", "max_memory"),
        ("{model: ./model, device_map: auto, max_memory: {cpu: lots}}", "max_memory"),
    ],
)
def test_a_wrong_placement_in_a_suite_names_its_key(models: str, said: str, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "wrong.yaml").write_text(SUITE.replace("{model: ./model, name: whole}", models))
    done = rig.invoke("plan", "wrong.yaml")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
