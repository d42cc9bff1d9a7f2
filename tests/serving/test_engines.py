"""Engines that can be installed here do what `prunebench check` says of each export.

Run with `tox run -e runtimes`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

import prunebench
from prunebench.model import gguf_write
from prunebench.model.anatomy import Block
from prunebench.model.biases import add_biases
from prunebench.model.checkpoint import save
from prunebench.model.decilm import save_decilm
from prunebench.model.gguf_write import write_gguf
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.uniform import uniform
from prunebench.model.width import keep_groups
from prunebench.serving.check import Answer, check
from tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.runtimes

PROMPT = [5, 9, 100, 41, 300, 22, 17, 250]
TOKENS = 12
SIZES = {"hidden_size": 64, "intermediate_size": 96}  # rows of whole blocks


def uneven(model: Any) -> Any:
    remove_blocks(model, [Block(1, "attention"), Block(2, "mlp")])
    keep_groups(model, {Block(3, "mlp"): range(3, 40), Block(3, "attention"): [1]})
    return model


def models() -> dict[str, Any]:
    shallow, flap = tiny_model("llama", **SIZES), tiny_model("llama", **SIZES)
    remove_layers(shallow, [1, 2])
    add_biases(flap, {"model.layers.2.mlp.down_proj": torch.linspace(-1, 1, 64)})
    keep_groups(flap, {Block(2, "mlp"): range(5, 60)})
    return {
        "dense": tiny_model("llama", **SIZES),
        "qwen3": tiny_model("qwen3", **SIZES),
        "shallow": shallow,
        "uneven": uneven(tiny_model("llama", **SIZES)),
        "even": uniform(uneven(tiny_model("llama", **SIZES))).model,
        "even-qwen3": uniform(uneven(tiny_model("qwen3", **SIZES))).model,
        "uneven-qwen3": uneven(tiny_model("qwen3", **SIZES)),
        "flap": flap,
        "even-flap": uniform(flap).model,
    }


NAMES = tuple(models())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    for name, model in models().items():
        save(model, tiny_tokenizer(), root / name, made_by={"method": name})
    save_decilm(uneven(tiny_model("llama", **SIZES)), tiny_tokenizer(), root / "decilm")
    return {path.name: path for path in root.iterdir()}


TIE = 5e-3
"""Logits that are this close count as equal: an engine's exponentials are rounded otherwise."""


def are_greedy(folder: Path, tokens: list[int]) -> bool:
    """Whether each token has the highest logit by transformers, along these tokens, or nearly."""
    assert len(tokens) == TOKENS
    model = prunebench.load_pruned(folder)
    logits = model(torch.tensor([[*PROMPT, *tokens]])).logits[0, len(PROMPT) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return bool((chosen >= logits.max(1).values - TIE).all())


def answer(path: Path, engine: str) -> Answer:
    (found,) = check(path, [engine])
    return found


def llama_cpp(path: Path) -> list[int]:
    """The greedy continuation by llama.cpp's server, with a cache in float32 as eager has it."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 64, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.port, settings.verbosity = 0, 0
    settings.warmup = settings.fit_params = settings.cache_prompt = False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)  # it ends with this reference
    address = urlsplit(server.listening_address)
    connection = HTTPConnection(str(address.hostname), int(address.port or 80))
    asked = {
        "prompt": PROMPT,
        "n_predict": TOKENS,
        "samplers": ["top_k"],
        "top_k": 1,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
    }
    connection.request(
        "POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"}
    )
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found["tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = folders[name]
    said = answer(folder, "llama.cpp").loads
    if name == "uneven-qwen3":
        assert said == "no"
        with pytest.raises(prunebench.PrunebenchError):
            write_gguf(folder, tmp_path / "model.gguf")
        return
    assert said == "yes"
    write_gguf(folder, tmp_path / "model.gguf")
    assert answer(tmp_path / "model.gguf", "llama.cpp").loads == "yes"
    assert are_greedy(folder, llama_cpp(tmp_path / "model.gguf"))


def test_llama_cpp_drops_the_attention_that_check_warns_of(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without our MLP of zeros: it loads, and gives other tokens."""
    plan = gguf_write.plan_gguf

    def bare(folder: Path, **options: Any) -> Any:
        found = plan(folder, **options)
        kept = [one for one in found.tensors if not one.name.startswith("blk.2.ffn")]
        return dataclasses.replace(found, tensors=kept)

    monkeypatch.setattr(gguf_write, "plan_gguf", bare)
    monkeypatch.setattr("prunebench.model.gguf_write_plan.ZERO_MLP", 0)
    write_gguf(folders["uneven"], tmp_path / "model.gguf")
    found = answer(tmp_path / "model.gguf", "llama.cpp")
    assert [one.rule for one in found.findings] == ["gguf-lost-attention"]
    assert not are_greedy(folders["uneven"], llama_cpp(tmp_path / "model.gguf"))


def onnxruntime(folder: Path, out: Path) -> list[int]:
    """The greedy continuation by ONNX Runtime, of a graph that its builder makes of ``folder``."""
    import onnxruntime_genai as genai

    words = ["-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-o", str(out)]
    subprocess.run(
        [sys.executable, *words, "-p", "fp32", "-e", "cpu", "-c", str(out.parent / "cache")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    model = genai.Model(str(out))
    settings = genai.GeneratorParams(model)
    length = len(PROMPT) + TOKENS
    settings.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))[len(PROMPT) :]


@pytest.mark.parametrize("name", [*NAMES, "decilm"])
def test_onnxruntime(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder, out = folders[name], tmp_path / "onnx"
    loads = answer(folder, "onnxruntime").loads
    assert loads == ("no" if name in {"uneven", "uneven-qwen3", "flap", "decilm"} else "yes")
    if loads == "no":
        with pytest.raises(subprocess.CalledProcessError):
            onnxruntime(folder, out)
        return
    assert are_greedy(folder, onnxruntime(folder, out))
