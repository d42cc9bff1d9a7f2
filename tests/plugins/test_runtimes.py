"""The built-in runtimes without their engines: how they ask, what they refuse, what they pass on.

`tox run -e runtimes` has the engines themselves.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from prunebench import PrunebenchError
from prunebench.model.anatomy import Block
from prunebench.model.checkpoint import save
from prunebench.model.surgery import remove_blocks
from prunebench.model.width import keep_groups
from prunebench_plugins.llama_cpp import LlamaCpp
from prunebench_plugins.onnxruntime import Layers, OnnxRuntime
from prunebench_plugins.openvino import OpenVino
from prunebench_plugins.vllm import Vllm
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    model = tiny_model("llama")
    remove_blocks(model, [Block(1, "mlp")])
    folder = tmp_path_factory.mktemp("uneven") / "model"
    save(model, tiny_tokenizer(), folder, made_by={"method": "by hand"})
    return folder


class LlamaServer(BaseHTTPRequestHandler):
    asked: list[dict] = []  # noqa: RUF012
    status = 200

    def do_POST(self):
        LlamaServer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(LlamaServer.status)
        self.end_headers()
        count = LlamaServer.asked[-1]["n_predict"]
        for number in range(count):
            event = {"tokens": [100 + number], "stop": False}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b'data: {"tokens": [], "stop": true}\n\n')

    def log_message(self, *_):
        pass


@pytest.fixture
def llama(monkeypatch):
    """A fake of xllamacpp, whose server answers; returns the settings that it was started with."""
    started = []
    http = HTTPServer(("127.0.0.1", 0), LlamaServer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def server(settings):
        started.append(settings)
        return SimpleNamespace(listening_address=f"http://127.0.0.1:{http.server_port}")

    module = ModuleType("xllamacpp")
    module.CommonParams = lambda: SimpleNamespace(
        model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
    )
    module.Server = server
    module.ggml_type = SimpleNamespace(GGML_TYPE_F32=0)
    monkeypatch.setitem(sys.modules, "xllamacpp", module)
    LlamaServer.asked.clear()
    LlamaServer.status = 200
    yield started
    http.shutdown()
    thread.join()
    http.server_close()


def test_llama_cpp_is_asked_for_greedy_tokens_without_a_cache(llama):
    session = LlamaCpp(LlamaCpp.Options()).open(Path("model.gguf"), 2, 7)
    assert list(session.tokens([1, 2, 3])) == [100, 101, 102, 103]
    first = iter(session.tokens([1, 2, 3]))
    next(first)
    first.close()  # what is left of the answer is read, and the connection closed
    session.close()
    [settings] = llama
    asked = LlamaServer.asked[0]
    assert (asked["prompt"], asked["n_predict"], asked["top_k"]) == ([1, 2, 3], 4, 1)
    assert not asked["cache_prompt"]
    assert asked["return_tokens"]
    assert (settings.cpuparams.n_threads, settings.cpuparams_batch.n_threads) == (2, 2)
    assert (settings.n_ctx, settings.cache_ram_mib, settings.cache_type_k) == (7, 0, 0)


def test_llama_cpp_keeps_the_cache_of_other_precisions_as_it_is(llama):
    LlamaCpp(LlamaCpp.Options(precision="q8_0")).open(Path("model.gguf"), 1, 7)
    assert not hasattr(llama[0], "cache_type_k")


def test_an_error_of_llama_cpp_is_passed_on(llama):
    LlamaServer.status = 500
    session = LlamaCpp(LlamaCpp.Options()).open(Path("model.gguf"), 1, 5)
    with pytest.raises(PrunebenchError, match=r"llama.cpp: data"):
        list(session.tokens([1]))


def test_llama_cpp_refuses_what_gguf_cannot_hold(tmp_path, uneven):
    runtime = LlamaCpp(LlamaCpp.Options())
    assert "a opt model" in (runtime.refuses(tiny_checkpoint(tmp_path / "opt", "opt")) or "")
    assert runtime.refuses(uneven) is None


def test_onnxruntime_gets_layers_by_their_attention():
    model = tiny_model("llama")
    blocks = [(0, "attention"), (2, "attention"), (3, "mlp")]
    remove_blocks(model, [Block(layer, kind) for layer, kind in blocks])
    layers = Layers(model)
    steps = [[(kind, index) for kind, index, _ in group.steps] for group in layers._groups]
    # The first group begins with an MLP; the MLP of layer 2 belongs to the attention of layer 1.
    assert steps == [[("mlp", 0), ("attention", 1), ("mlp", 1), ("mlp", 2)], [("attention", 3)]]
    assert layers.options == ["num_hidden_layers=2"]
    kinds = [type(one).__name__ for one in layers.modules()]
    assert kinds == ["Embedding", *["GroupDecoderLayer"] * 2, "LlamaRMSNorm", "Linear"]


def test_onnxruntime_has_one_number_of_kv_heads():
    model = tiny_model("llama")
    keep_groups(model, {Block(2, "attention"): [1]})
    with pytest.raises(PrunebenchError, match="KV heads differ between layers"):
        Layers(model)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("opt", {}, "a opt model is not converted here"),
        ("llama", {}, "its heads have 12 channels"),
        ("mistral", {"head_dim": 16}, "read only a window"),
        ("qwen2", {"head_dim": 16}, "read only a window"),
        ("qwen2", {"head_dim": 16, "use_sliding_window": False}, None),
        ("llama", {"head_dim": 16}, None),
    ],
)
def test_onnxruntime_says_what_it_does_not_convert(tmp_path, family, options, reason):
    folder = tiny_checkpoint(tmp_path / "model", family, **options)
    found = OnnxRuntime(OnnxRuntime.Options()).refuses(folder)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"layers": [{"replacement": None}], "rotated": None}, None),
        ({"layers": [{}]}, None),
        ({"layers": [], "rotated": {"layers": []}}, "rotated"),
        ({"layers": [{"replacement": {"network": "mlp", "width": 8}}]}, "a trained network"),
    ],
)
def test_onnxruntime_refuses_layers_that_are_no_decoder_layers(tmp_path, shape, reason):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pruning.json").write_text(json.dumps({"plain": False, "shape": shape}))
    found = OnnxRuntime(OnnxRuntime.Options()).refuses(tmp_path)
    assert found is None if reason is None else reason in (found or "")


OTHER_PYTHON = """\
#!{python}
import json, sys
assert sys.argv[1] == "-I"
what, *given = sys.argv[3:]
if what == "versions":
    print(json.dumps({{"openvino": "1.0"}}))
elif what == "convert":
    if "chained" in given[0]:
        try:
            raise RuntimeError("the cause")
        except RuntimeError as error:
            raise ImportError("what follows from it") from error
    sys.exit("no such operation")
else:
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        for number in range(asked["count"]):
            print(asked["prompt"][-1] + 1 + number, flush=True)
"""


@pytest.fixture
def openvino(tmp_path) -> OpenVino:
    python = tmp_path / "python"
    python.write_text(textwrap.dedent(OTHER_PYTHON).format(python=sys.executable))
    os.chmod(python, 0o755)  # noqa: PTH101
    return OpenVino(OpenVino.Options(python=str(python)))


def test_openvino_runs_in_the_interpreter_that_the_suite_names(openvino, tmp_path):
    assert openvino.versions() == {"openvino": "1.0"}
    session = openvino.open(tmp_path, 1, 7)
    assert list(session.tokens([1, 2, 3])) == [4, 5, 6, 7]
    first = iter(session.tokens([1, 2, 30]))
    assert next(first) == 31
    first.close()  # the next prompt must not get the tokens of this one
    assert list(session.tokens([9, 9, 9])) == [10, 11, 12, 13]
    session.close()
    assert session._process.poll() is not None


def test_what_openvino_says_is_in_the_error(openvino, tmp_path):
    with pytest.raises(PrunebenchError, match="OpenVINO: no such operation"):
        openvino.convert(tmp_path, tmp_path, "fp32")
    with pytest.raises(PrunebenchError, match="OpenVINO: RuntimeError: the cause"):
        openvino.convert(tmp_path / "chained", tmp_path, "fp32")


@pytest.mark.parametrize("runtime", [OpenVino, Vllm])
def test_layers_that_differ_are_refused_where_only_plain_models_load(runtime, uneven, tmp_path):
    chosen = runtime(runtime.Options())
    assert "layers have different shapes" in (chosen.refuses(uneven) or "")
    assert chosen.refuses(tiny_checkpoint(tmp_path / "plain")) is None


def test_vllm_gives_the_new_tokens_of_each_step(monkeypatch, tmp_path):
    class Engine:
        def __init__(self):
            self.left, self.found, self.asked = 0, [], None

        def add_request(self, name, prompt, parameters):
            self.left, self.found, self.asked = parameters["max_tokens"], [], prompt

        def has_unfinished_requests(self):
            return self.left > 0

        def step(self):
            self.left -= 1
            self.found.append(len(self.found))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=list(self.found))])]

        def abort_request(self, names):
            self.left = 0

    engine, given = Engine(), {}
    module = ModuleType("vllm")
    module.LLMEngine = SimpleNamespace(from_engine_args=lambda _: engine)
    module.EngineArgs = lambda **arguments: given.update(arguments)
    module.SamplingParams = lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "vllm", module)
    session = Vllm(Vllm.Options()).open(tmp_path, 1, 6)
    assert list(session.tokens([7, 8])) == [0, 1, 2, 3]
    assert engine.asked == {"prompt_token_ids": [7, 8]}
    assert (given["dtype"], given["enable_prefix_caching"], given["max_model_len"]) == (
        "bfloat16",
        False,
        6,
    )
