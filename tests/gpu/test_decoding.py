"""Execution forms, 2:4 kernels and bandwidth on a CUDA GPU, with their figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.cell.phases import Phases
from prunebench.cell.profile import profile
from prunebench.experiment.measures import LatencySpec
from prunebench.measure.audit import audit, dense_facts
from prunebench.measure.speed import sparse24
from prunebench.measure.speed.bandwidth import read_bandwidth
from prunebench.measure.speed.compare_forms import compare_forms
from prunebench.measure.speed.execution import choose
from prunebench.measure.speed.io import generation_io
from prunebench.measure.speed.latency import measure_latency
from prunebench.model.anatomy import Block
from prunebench.model.dense_indices import DenseIndices
from prunebench.model.surgery import remove_layers
from prunebench.model.width import keep_groups
from tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


def llama_7b(layers: int = 32) -> Any:
    """LLaMA-7B's shape with random weights, float16, made on the GPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=32000,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def prompt(vocabulary: int, batch: int = 1, length: int = 128) -> torch.Tensor:
    return torch.randint(
        0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)
    ).cuda()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_recorded_graph_gives_the_same_tokens(family: str) -> None:
    model = tiny_model(family).cuda().eval()
    for length in (5, 9):  # a graph that was recorded behind one prompt serves another
        chosen = choose([model], prompt(320, 2, length), 8, "cuda-graph")
        assert chosen.same_tokens is True


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["dense", "sliced", "shortened"])
def test_a_7b_shape_reads_at_the_dram_s_speed(kind: str) -> None:
    """What gpt-fast reports on an A100: 1,397 of about 1,700 GB/s at batch 1, a share of 0.82."""
    model = llama_7b()
    if kind == "shortened":
        remove_layers(model, range(20, 28))
    elif kind == "sliced":
        keep_groups(
            model,
            {Block(layer, "mlp"): list(range(8256)) for layer in range(4, 30)}
            | {Block(layer, "attention"): list(range(24)) for layer in range(4, 30)},
        )
    shape = LatencySpec(prompt=128, new_tokens=64, batch_size=1, min_rounds=5, min_time_s=3)
    latency, _ = measure_latency(model, prompt(32000), shape)
    bandwidth, source = read_bandwidth("cuda")
    io = generation_io(model, latency, bandwidth, source)
    print(
        f"\n{kind}: {latency.execution}, {latency.inter_token_s.median * 1e3:.2f} ms a token, "
        f"{io.utilisation:.2f} of {bandwidth / 1e9:.0f} GB/s"
    )
    assert latency.same_tokens is not False
    assert io.utilisation >= 0.82


@pytest.mark.timeout(900)
def test_the_forms_beside_generate() -> None:
    found = compare_forms(
        llama_7b(8),
        prompt(32000),
        32,
        ["eager", "static", "lean", "cuda-graph", "compiled"],
        rounds=6,
    )
    print()
    for one in found:
        ratio = "" if one.speedup is None else f"{1 / one.speedup.estimate:.2f} x generate()"
        taken = "-" if one.inter_token_s is None else f"{one.inter_token_s * 1e3:.2f} ms"
        print(f"{one.form:12} {taken:10} {ratio} {one.note or ''}")
    assert all(one.same_tokens is not False for one in found)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", [1, 8, 32, 64])
def test_two_of_four_beside_dense_with_zeros(batch: int) -> None:
    if torch.cuda.get_device_capability() < sparse24.LEAST_CAPABILITY:
        pytest.skip("no sparse tensor cores")
    model, twin = llama_7b(8), llama_7b(8)
    facts = dense_facts(model)
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.view(-1, 4)[:, 2:] = 0
    audited = audit(model, facts, DenseIndices(list(range(8))), [(2, 4)])
    shape = LatencySpec(prompt=128, new_tokens=32, batch_size=batch, min_rounds=6, min_time_s=2)
    found = profile(model, [shape], 32000, Phases(), audited=audited, load_dense=lambda: twin)
    assert [one.weights for one in found.latency] == ["as stored", "2:4 kernels"]
    for one in found.latency:
        assert one.inter_token_speedup is not None
        assert one.ttft_speedup is not None
        print(
            f"\nbatch {batch}, {one.weights}, {one.execution}: "
            f"generation {one.inter_token_speedup.estimate:.3f} x, prompt {one.ttft_speedup.estimate:.3f} x dense"
        )
