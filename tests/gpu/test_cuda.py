"""Whole cells on a CUDA GPU, with tiny models: `tox run -e gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation import SPEC, windows_of
from prunebench import Context, anatomy, prune
from prunebench.experiment.model import Placement
from prunebench.measure.devices.nvml import Nvml
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.speed.bandwidth import read_bandwidth
from prunebench.model.load import load, load_dispatched
from prunebench.model.placement import dispatch, input_device, is_dispatched, layers_by_device
from prunebench.plugin.host import load_plugins
from prunebench.store.run_folder import RunStore
from rig import Rig
from tiny import FAMILIES, tiny_checkpoint, tiny_model

GREEDY = """
import torch
from prunebench import Method, hookimpl

class Greedy(Method):
    name = "greedy"
    def prune(self, model, context):
        kept = []
        while True:
            kept.append(torch.ones(1 << 30, dtype=torch.uint8, device="cuda"))

@hookimpl
def prunebench_register_method():
    return Greedy
"""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_wanda_on_the_gpu_agrees_with_the_cpu(family: str, sparsity: float | str) -> None:
    masks, values = [], []
    for device in ("cpu", "cuda"):
        model = tiny_model(family).to(device)
        tokens = torch.randint(
            0, model.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0)
        )
        cls = load_plugins()["method"]["wanda"].value
        with torch.no_grad():
            cls(cls.Options(sparsity=sparsity)).prune(
                model, Context(tokens, 0, list(range(len(anatomy(model).layers))))
            )
        parts = anatomy(model)
        weights = [
            linear.weight for layer in parts.layers for linear in parts.linears(layer).values()
        ]
        masks.append(torch.cat([(weight == 0).flatten().cpu() for weight in weights]))
        result = perplexity(model, windows_of(tokens), SPEC)
        values.append(result.perplexity)
    differing = float((masks[0] != masks[1]).float().mean())
    print(
        f"{family} {sparsity}: {differing:.2e} of the mask differs, "
        f"perplexity {values[0]:.4f} and {values[1]:.4f}"
    )
    assert differing < 1e-3
    assert values[1] == pytest.approx(values[0], rel=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_a_model_on_the_cpu_is_pruned_layer_by_layer_on_the_gpu(
    family: str, name: str, sparsity: float | str
) -> None:
    masks = []
    for device in (None, torch.device("cuda")):
        model = tiny_model(family)
        tokens = torch.randint(
            0, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(0)
        )
        cls = load_plugins()["method"][name].value
        parts = anatomy(model)
        with torch.no_grad():
            cls(cls.Options(sparsity=sparsity)).prune(
                model, Context(tokens, 0, list(range(len(parts.layers))), device=device)
            )
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        weights = [
            linear.weight for layer in parts.layers for linear in parts.linears(layer).values()
        ]
        masks.append(torch.cat([(weight == 0).flatten() for weight in weights]))
    differing = float((masks[0] != masks[1]).float().mean())
    print(f"{family} {name} {sparsity}: {differing:.2e} of the mask differs")
    assert differing < 5e-3


def test_a_run_on_the_gpu_has_gpu_figures(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    suite = rig.suite("wanda: {sparsity: 2:4}", "shortgpt: {count: 1}", latency=True)
    result = rig.prunebench("run", suite, "--set", "device=cuda")
    assert result.returncode == 0, result.stdout + result.stderr
    good, _ = RunStore.open(tmp_path / "runs" / "tiny").records()
    for record in good:
        assert record.memory.gpu is not None
        assert record.memory.gpu.allocated_bytes > 0
        assert (
            record.memory.gpu.nvml_device_bytes is None or record.memory.gpu.nvml_device_bytes > 0
        )
        assert record.speed.latency[0].device.startswith("cuda")
        assert record.provenance["gpus"]


def test_a_method_that_exhausts_the_gpu_is_one_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.plugin("greedy", GREEDY)
    result = rig.prunebench(
        "run", rig.suite("greedy", "wanda: {sparsity: 2:4}"), "--set", "device=cuda"
    )
    assert result.returncode == 1, result.stdout + result.stderr
    good, _ = RunStore.open(tmp_path / "runs" / "tiny").records()
    records = {record.cell.method.name: record for record in good}
    assert records["greedy"].status == "out-of-memory"
    assert records["greedy"].error is not None
    assert records["greedy"].error.phase == "prune"
    assert records["dense"].status == records["wanda"].status == "ok"


def test_bandwidth_and_nvml_answer() -> None:
    bandwidth, source = read_bandwidth("cuda")
    print(f"{bandwidth / 1e9:.0f} GB/s: {source}")
    assert bandwidth > 1e11
    nvml = Nvml()
    print(nvml.devices())
    nvml.close()


def test_a_model_is_spread_over_the_gpu_and_host_memory(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    whole = load(tmp_path, dtype="float32", device="cpu").model
    ids = torch.arange(2, 26).view(2, 12)
    half = Placement(max_memory=(("0", 250_000), ("cpu", 10**9)))
    straight = load_dispatched(tmp_path, dtype="float32", device="cuda", placement=half).model
    after = load(tmp_path, dtype="float32", device="cpu").model
    dispatch(after, half, "cuda")
    for model in (straight, after):
        assert is_dispatched(model)
        assert set(layers_by_device(model)) == {"cuda:0", "cpu"}
        assert input_device(model).type == "cuda"
        torch.testing.assert_close(
            model(ids.cuda()).logits.cpu(), whole(ids).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("where", [{"device": "cuda"}, {"device": "cpu", "layer_device": "cuda"}])
def test_streaming_gives_the_folder_of_pruning_in_memory(
    where: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    text = {"corpus": "text.txt", "windows": 3, "length": 16}
    for out, stream in (("whole", False), ("streamed", True)):
        prune(
            "model",
            "sparsegpt",
            options={"sparsity": "2:4"},
            calibration=text,
            out=out,
            stream=stream,
            **where,
        )
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
        for out in ("whole", "streamed")
    ]
    assert files[0] == files[1]
