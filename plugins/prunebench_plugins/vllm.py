"""vLLM where it is installed, for machines with a GPU. Untested: no such machine was at hand.

It loads plain transformers folders, so nothing is converted. Its scheduler takes one step for each
token of a single request, and prefix caching is off.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prunebench import Field, Reference, Runtime, RuntimeOptions, Session, hookimpl

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Vllm(Runtime):
    """vLLM, one request at a time. Untested so far."""

    name = "vllm"
    packages = ("vllm",)
    reference = Reference("vLLM", code="https://github.com/vllm-project/vllm")

    class Options(RuntimeOptions):
        precision: Literal["fp32", "bf16", "fp16"] = Field(
            "bf16", description="what weights are loaded as"
        )
        memory: float = Field(
            0.4, gt=0, le=0.5, description="share of the GPU's memory for each of the two models"
        )

    def refuses(self, folder: Path) -> str | None:
        pruned = folder / "pruning.json"
        if pruned.is_file() and not json.loads(pruned.read_text(encoding="utf-8"))["plain"]:
            return "its layers have different shapes: vLLM reads those in the DeciLM format only"
        return None

    def convert(self, folder: Path, out: Path, precision: str) -> Path:  # noqa: ARG002 - as loaded
        return Path(shutil.copytree(folder, out / "model"))

    def open(self, path: Path, threads: int, length: int) -> Session:  # noqa: ARG002 - on a GPU
        return Requests(path, length, DTYPES[self.options.precision], self.options.memory)


class Requests(Session):
    """An engine in this process, stepped by hand."""

    def __init__(self, path: Path, length: int, dtype: str, memory: float) -> None:
        import vllm  # type: ignore[import-not-found,unused-ignore]

        self._library: Any = vllm
        self._length, self._number = length, 0
        self._engine = vllm.LLMEngine.from_engine_args(
            vllm.EngineArgs(
                model=str(path),
                dtype=dtype,
                max_model_len=length,
                max_num_seqs=1,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                gpu_memory_utilization=memory,
            )
        )

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self._number += 1
        asked = self._library.SamplingParams(
            temperature=0.0,
            max_tokens=self._length - len(prompt),
            ignore_eos=True,
            detokenize=False,
        )
        name = str(self._number)
        self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, asked)
        given = 0
        try:
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    found = output.outputs[0].token_ids
                    yield from found[given:]
                    given = len(found)
        finally:
            self._engine.abort_request([name])

    def close(self) -> None:
        self._engine = None


@hookimpl
def prunebench_register_runtime() -> type[Runtime]:
    return Vllm
