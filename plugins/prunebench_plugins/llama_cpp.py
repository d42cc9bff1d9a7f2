"""llama.cpp, by the wheel `xllamacpp`: its server with one slot, asked over HTTP on this machine.

Models are converted by our own GGUF writer, also those whose layers differ. The file's vocabulary
has ids instead of text: the server holds a token back until its bytes are whole characters, and a
token of digits always is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from prunebench import (
    Field,
    PrunebenchError,
    Reference,
    Runtime,
    RuntimeOptions,
    Session,
    hookimpl,
)

TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "q8_0": "q8_0"}


class LlamaCpp(Runtime):
    """llama.cpp on the CPU, as its server runs it."""

    name = "llama-cpp"
    packages = ("xllamacpp", "gguf")
    reference = Reference("llama.cpp", code="https://github.com/ggml-org/llama.cpp")

    class Options(RuntimeOptions):
        precision: Literal["fp32", "fp16", "bf16", "q8_0"] = Field(
            "fp32", description="what the GGUF file holds; q8_0 is 8 bits in blocks of 32"
        )

    def refuses(self, folder: Path) -> str | None:
        from prunebench import gguf_refusal  # here, because it imports torch

        return gguf_refusal(folder, text=False)

    def convert(self, folder: Path, out: Path, precision: str) -> Path:
        from prunebench import write_gguf

        return write_gguf(folder, out / "model.gguf", TYPES[precision], text=False)

    def open(self, path: Path, threads: int, length: int) -> Session:
        return Server(path, threads, length, exact=self.options.precision == "fp32")


class Server(Session):
    """A server with one model in this process."""

    def __init__(self, path: Path, threads: int, length: int, *, exact: bool) -> None:
        import xllamacpp

        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = length
        settings.n_parallel = 1
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = threads
        settings.cpuparams_batch.n_threads = threads
        settings.port = 0  # any that is free
        settings.verbosity = 0
        # The harness warms up; and nothing of an earlier prompt may help the next one.
        settings.warmup = settings.fit_params = settings.cache_prompt = False
        settings.cache_ram_mib = 0
        if exact:  # the default is a cache in float16
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._length = length
        # Without this reference the server would end.
        self._server: Any = xllamacpp.Server(settings)
        self._address = urlsplit(self._server.listening_address)

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        asked = {
            "prompt": list(prompt),
            "n_predict": self._length - len(prompt),
            "samplers": ["top_k"],
            "top_k": 1,
            "temperature": 0,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }
        headers = {"Content-Type": "application/json"}
        # A new one for each prompt: the server closes a connection after some requests or seconds.
        connection = HTTPConnection(str(self._address.hostname), int(self._address.port or 80))
        connection.request("POST", "/completion", json.dumps(asked), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise PrunebenchError(f"llama.cpp: {answer.read().decode(errors='replace')[:300]}")
        try:
            # One line per event: `data: {"tokens": [17], "stop": false, ...}`.
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                yield from event.get("tokens", ())
                if event.get("stop"):
                    return
        finally:
            answer.read()  # until the server is done: the next round begins on an idle one
            connection.close()

    def close(self) -> None:
        self._server = None


@hookimpl
def prunebench_register_runtime() -> type[Runtime]:
    return LlamaCpp
