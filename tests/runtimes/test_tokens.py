"""The installed engines on small models of every shape: their tokens are the model's own.

`tox run -e runtimes` installs them. OpenVINO has an environment of its own: name its interpreter
with PRUNEBENCH_OPENVINO to test it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from transformers import AutoTokenizer

from prunebench import PrunebenchError
from prunebench.measure.speed.runtime_tokens import agreement, greedy_logits
from prunebench.model.anatomy import Block
from prunebench.model.checkpoint import save
from prunebench.model.gguf_write import write_gguf
from prunebench.model.surgery import remove_blocks, remove_layers
from prunebench.model.width import keep_groups, keep_hidden
from prunebench.testing import RuntimeContract
from prunebench.testing.models import _CONFIGS, _GATED
from prunebench_plugins.llama_cpp import LlamaCpp
from prunebench_plugins.onnxruntime import OnnxRuntime
from prunebench_plugins.openvino import OpenVino
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.runtimes

PROMPT = [5, 9, 100, 41, 300, 22, 17, 250]
NEW = 16
HEADS = {"head_dim": 16}  # ONNX Runtime takes multiples of 16
FULL = {"use_sliding_window": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = _GATED | {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": True,
    "sliding_window": 8,
}
OTHERS = {"gemma2": GEMMA, "gemma3_text": GEMMA | {"num_hidden_layers": 7}}


class TestLlamaCpp(RuntimeContract):
    runtime = LlamaCpp
    families = ("llama", "qwen3", "gemma")


class TestOnnxRuntime(RuntimeContract):
    runtime = OnnxRuntime
    families = ("qwen3",)


def gone(model: Any) -> None:
    """MLPs and attentions of the first and the last layer, too, and one whole layer."""
    blocks = [(0, "attention"), (1, "attention"), (1, "mlp"), (2, "mlp"), (3, "mlp")]
    remove_blocks(model, [Block(layer, kind) for layer, kind in blocks])


def narrow_mlps(model: Any) -> None:
    remove_blocks(model, [Block(0, "attention"), Block(1, "mlp")])
    keep_groups(model, {Block(2, "mlp"): range(0, 62, 2), Block(3, "mlp"): range(48)})


def narrow_heads(model: Any) -> None:
    keep_groups(model, {Block(2, "attention"): [1], Block(3, "mlp"): range(31)})


def narrow(model: Any) -> None:
    """All layers alike: fewer heads, channels and residual channels than the config's."""
    keep_groups(
        model,
        {Block(layer, "mlp"): range(64) for layer in range(4)}
        | {Block(layer, "attention"): [0] for layer in range(4)},
    )
    if model.config.model_type == "llama":
        keep_hidden(model, range(40))


def shorter(model: Any) -> None:
    remove_layers(model, [1])


def as_it_is(_: Any) -> None:
    pass


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], None]]] = {
    "llama": ("llama", HEADS, as_it_is),
    "biases": (
        "llama",
        HEADS | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        narrow_mlps,
    ),
    "llama3": ("llama", HEADS | {"rope_parameters": LLAMA3}, as_it_is),
    "gone": ("llama", HEADS, gone),
    "narrow MLPs": ("llama", HEADS, narrow_mlps),
    "narrow heads": ("llama", HEADS, narrow_heads),
    "narrow": ("llama", HEADS, narrow),
    "shorter": ("llama", HEADS, shorter),
    "qwen2": ("qwen2", HEADS | FULL, as_it_is),
    "qwen2, uneven": ("qwen2", HEADS | FULL, narrow_mlps),
    "qwen3": ("qwen3", {}, shorter),
    "gemma": ("gemma", {}, narrow),
    "gemma2": ("gemma2", {}, as_it_is),
    "gemma3": ("gemma3_text", {}, as_it_is),
}
REFUSED = {
    ("onnxruntime", "narrow heads"): "KV heads differ between layers",
    ("onnxruntime", "gemma"): "a gemma model is not converted here",
    ("onnxruntime", "gemma2"): "a gemma2 model is not converted here",
    ("onnxruntime", "gemma3"): "a gemma3_text model is not converted here",
    ("openvino", "gone"): "its layers have different shapes",
    ("openvino", "narrow MLPs"): "its layers have different shapes",
    ("openvino", "narrow heads"): "its layers have different shapes",
    ("openvino", "biases"): "its layers have different shapes",
    ("openvino", "qwen2, uneven"): "its layers have different shapes",
}


def converted(runtime: Any, model: Any, folder: Path, length: int) -> Any:
    """A session of the model. Raises PrunebenchError if the runtime refuses it."""
    save(model, tiny_tokenizer(), folder / "model", made_by={"method": "by hand"})
    if (reason := runtime.refuses(folder / "model")) is not None:
        raise PrunebenchError(reason)
    out = folder / "converted"
    out.mkdir()
    path = runtime.convert(folder / "model", out, runtime.options.precision)
    return runtime.open(path, 1, length)


def check(runtime: Any, case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, options, change = CASES[case]
    if family in OTHERS:
        monkeypatch.setitem(_CONFIGS, family, OTHERS[family])
    model = tiny_model(family, **options)
    change(model)
    reason = REFUSED.get((runtime.name, case))
    if reason is not None:
        with pytest.raises(PrunebenchError, match=reason):
            converted(runtime, model, folder, len(PROMPT) + NEW)
        return
    session = converted(runtime, model, folder, len(PROMPT) + NEW)
    found = list(session.tokens(PROMPT))
    session.close()
    judged = agreement(greedy_logits(model, torch.tensor([PROMPT]), NEW), found)
    assert judged.same, judged


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp(case, tmp_path, monkeypatch):
    check(LlamaCpp(LlamaCpp.Options()), case, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime(case, tmp_path, monkeypatch):
    check(OnnxRuntime(OnnxRuntime.Options()), case, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", ["llama", "qwen2", "shorter", "narrow", "gone"])
def test_openvino(case, tmp_path, monkeypatch):
    python = os.environ.get("PRUNEBENCH_OPENVINO")
    if python is None:
        pytest.skip("PRUNEBENCH_OPENVINO names no interpreter")
    check(OpenVino(OpenVino.Options(python=python)), case, tmp_path, monkeypatch)


def test_an_interpreter_without_openvino_is_named(tmp_path):
    with pytest.raises(PrunebenchError, match="cannot run"):
        OpenVino(OpenVino.Options(python=str(tmp_path / "python"))).versions()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "q8_0"])
def test_llama_cpp_takes_every_precision_that_we_write(precision, tmp_path):
    runtime = LlamaCpp(LlamaCpp.Options(precision=precision))
    session = converted(runtime, tiny_model("llama", hidden_size=64), tmp_path, len(PROMPT) + 4)
    assert len(list(session.tokens(PROMPT))) == 4
    session.close()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_onnxruntime_takes_every_precision(precision, tmp_path):
    runtime = OnnxRuntime(OnnxRuntime.Options(precision=precision))
    model = tiny_model("llama", **HEADS, hidden_size=64)
    narrow_mlps(model)
    session = converted(runtime, model, tmp_path, len(PROMPT) + 4)
    assert len(list(session.tokens(PROMPT))) == 4
    session.close()


TEXTS = (
    "Hello, the quick  brown fox's 12345 days\n\n  indented ünïcödé 你好 <s> tail ",
    "  x\t\ty!!? 1 22",
)


@pytest.mark.parametrize("which", ["tiny", "smollm2"])
def test_llama_cpp_cuts_text_as_the_tokenizer_of_the_folder(which, tmp_path):
    import xllamacpp

    if which == "tiny":
        folder = tiny_checkpoint(tmp_path / "model")
    else:
        from smollm2 import smollm2

        folder, loaded = tmp_path / "model", smollm2()
        save(loaded.model, loaded.tokenizer, folder)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(write_gguf(folder, tmp_path / "model.gguf", "f16"))
    settings.n_ctx, settings.n_parallel, settings.port = 64, 1, 0
    settings.warmup = settings.fit_params = False
    server = xllamacpp.Server(settings)
    address = urlsplit(server.listening_address)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        connection = HTTPConnection(str(address.hostname), int(address.port or 0))
        asked = {"content": text, "add_special": False, "parse_special": True}
        connection.request(
            "POST", "/tokenize", json.dumps(asked), {"Content-Type": "application/json"}
        )
        found = json.loads(connection.getresponse().read())["tokens"]
        connection.close()
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
