"""Prune a checkpoint four times as large as the memory limit (tox run -e streaming)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.engine.memory_limit import used_bytes
from prunebench.model.safetensors_io import TensorFiles, new_file
from tiny import VOCABULARY, tiny_tokenizer

LIMIT = 640_000_000
"""Of the whole process; torch and transformers take about 420 MB of it."""

TEXT = "the quick brown fox jumps over the lazy dog, then a tall man was sitting in the shade of an old tree. "


def write_checkpoint(folder: Path, least_bytes: int) -> int:
    """Write a Llama of many layers tensor by tensor; returns its size in bytes."""
    shape = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "vocab_size": VOCABULARY,
    }
    layer_bytes = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    config = LlamaConfig(
        **shape, num_hidden_layers=least_bytes // layer_bytes + 1, max_position_embeddings=256
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    with TensorFiles(new_file(folder / "model.safetensors", state), write=True) as target:
        for name, empty in state.items():
            weight = torch.empty(empty.shape).normal_(0.0, 0.02, generator=generator)
            target.write(name, weight + 1 if empty.dim() == 1 else weight)
    return (folder / "model.safetensors").stat().st_size


def run_watched(arguments: list[str], folder: Path, limit: int) -> tuple[int, int, float]:
    """Run prunebench, and kill it if it exceeds the limit.

    Returns the exit code, the peak of the resident set in bytes, and the seconds.
    """
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PRUNEBENCH_CACHE": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "prunebench", *arguments], cwd=folder, env=environment
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, used_bytes(process.pid, limit) or 0)
        if peak > limit:
            process.kill()
            process.wait()
        time.sleep(0.005)
    return process.returncode, peak, time.monotonic() - started


@pytest.mark.streaming
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("method", "options"), [("wanda", ["sparsity=0.5"]), ("sparsegpt", ["sparsity=2:4"])]
)
def test_a_model_of_four_times_the_memory(method: str, options: list[str], tmp_path: Path) -> None:
    size = write_checkpoint(tmp_path / "model", 4 * LIMIT)
    assert size >= 4 * LIMIT
    (tmp_path / "text.txt").write_text(TEXT * 200)
    calibration = [
        word
        for key in ("corpus=text.txt", "windows=4", "length=128")
        for word in ("--calibration", key)
    ]
    arguments = ["prune", "./model", method, *options, *calibration, "--stream", "--out", "pruned"]
    code, peak, seconds = run_watched(arguments, tmp_path, LIMIT)
    print(f"{method}: checkpoint {size / 1e9:.2f} GB, peak {peak / 1e6:.0f} MB, {seconds:.0f} s")
    assert peak <= LIMIT
    assert code == 0
    shards = sorted((tmp_path / "pruned").glob("*.safetensors"))
    assert len(shards) == 2
    with safe_open(shards[-1], framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith("mlp.down_proj.weight"))  # noqa: SIM118
        assert float((file.get_tensor(name) == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
