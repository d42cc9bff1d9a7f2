"""NVML's figures of a real GPU, compared with what is known.

`PRUNEBENCH_NVML_RECORD=FILE` writes the session to a file for replay.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from nvml_replay import Recorder, replay
from prunebench.measure.devices.dram_traffic import DramMeter
from prunebench.measure.devices.energy import EnergyMeter, measure_energy
from prunebench.measure.devices.gpu_lookup import torch_gpu
from prunebench.measure.devices.memory import MemorySampler
from prunebench.measure.devices.nvml import Nvml
from prunebench.model.load import load
from tiny import tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]
GIB = 1 << 30
BUFFER = 2 * GIB


@pytest.fixture
def buffer() -> torch.Tensor:
    return torch.ones(BUFFER // 4, device="cuda")


def read_for(seconds: float, buffer: torch.Tensor) -> int:
    """Sum the buffer again and again; the bytes that were read."""
    end, passes = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for _ in range(10):
            buffer.sum()
        torch.cuda.synchronize()
        passes += 10
    return passes * buffer.nbytes


def test_a_session_is_recorded_and_answers_the_same_again(
    buffer: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pynvml

    path = Path(os.environ.get("PRUNEBENCH_NVML_RECORD", tmp_path / "session.json"))
    recorder = Recorder(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    monkeypatch.setitem(sys.modules, "pynvml", recorder)
    told = ask()
    with EnergyMeter("cuda") as meter:
        meter.start()
        read_for(1.0, buffer)
        meter.stop()
    with DramMeter() as dram:
        read_for(0.5, buffer)
    recorder.save(path, f"recorded on {torch.cuda.get_device_name()}, driver {told[0]}")
    print(path.read_text(encoding="utf-8"))
    monkeypatch.setitem(sys.modules, "pynvml", replay(json.loads(path.read_text(encoding="utf-8"))))
    assert ask() == told
    assert dram.result().seconds > 0


def ask() -> tuple[object, ...]:
    with Nvml() as nvml:
        gpu = torch_gpu(nvml, "cuda")
        assert gpu is not None
        processes = gpu.processes()
        return (
            nvml.driver(),
            gpu.mig,
            gpu.described(),
            gpu.memory_used(),
            processes,
            gpu.pcie_bytes_per_s(),
            gpu.pcie_link(),
            gpu.peak_bytes_per_s(),
        )


def test_the_sampler_sees_an_allocation_on_the_gpu() -> None:
    torch.ones(1, device="cuda")
    with MemorySampler() as sampler:
        time.sleep(1.5)
        sampler.phase("before")
        time.sleep(0.5)
        sampler.phase("load")
        block = torch.ones(BUFFER // 4).to("cuda")
        torch.cuda.synchronize()
        time.sleep(0.5)
        memory, _ = sampler.result()
    before, during = (entry.gpu for entry in memory.phases if entry.phase in ("before", "load"))
    print(memory.gpu, memory.problem, sampler.sharing(), sampler.pcie(), sep="\n")
    assert during is not None
    assert during.allocated_bytes >= block.nbytes
    if before is not None and before.nvml_device_bytes is not None:
        assert during.nvml_device_bytes - before.nvml_device_bytes == pytest.approx(
            block.nbytes, rel=0.05
        )


def test_energy_and_dram_traffic_are_plausible_or_have_a_reason(buffer: torch.Tensor) -> None:
    found = measure_energy(
        lambda: int(bool(read_for(0.05, buffer))),
        lambda: int(bool(read_for(0.05, buffer))),
        device="cuda",
    )
    print(found)
    if found.source is None:
        assert found.reason
    else:
        assert found.idle_w is not None and found.generation_w is not None
        assert 1 < found.idle_w < found.generation_w < 2000
    with DramMeter() as meter:
        read = read_for(1.0, buffer)
    dram = meter.result()
    print(dram, f"{read / dram.seconds / 1e9:.0f} GB/s by our own count")
    if dram.utilisation is None:
        assert dram.reason
    elif dram.peak_bytes_per_s is not None:
        by_counter = dram.utilisation * dram.peak_bytes_per_s
        assert by_counter == pytest.approx(read / dram.seconds, rel=0.15)


def test_loading_has_two_legs(tmp_path: Path) -> None:
    loaded = load(tiny_checkpoint(tmp_path / "tiny", "llama"), dtype="float32", device="cuda")
    assert loaded.transfers is not None and loaded.transfers.device_s is not None
    assert loaded.transfers.device_bytes == sum(
        tensor.nbytes for tensor in loaded.model.parameters()
    ) + sum(tensor.nbytes for tensor in loaded.model.buffers())
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cuda"}
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
