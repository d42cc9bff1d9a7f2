"""Converts for OpenVINO and generates with it, in an interpreter that may have no prunebench.

    python openvino_process.py versions
    python openvino_process.py convert FOLDER OUT PRECISION
    python openvino_process.py serve OUT THREADS PRECISION

`serve` reads a line {"prompt": [ids], "count": number} and answers with one token id per line.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO computes in; weights of int8 are stored in 8 bits."""


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("openvino", "optimum-intel", "transformers")}


def convert(folder: str, out: str, precision: str) -> None:
    from optimum.intel import OVModelForCausalLM  # type: ignore[import-not-found,unused-ignore]

    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, compile=False, load_in_8bit=precision == "int8"
    )
    model.save_pretrained(out)


def serve(out: str, threads: str, precision: str) -> None:
    import openvino  # type: ignore[import-not-found,unused-ignore]

    settings = {
        "INFERENCE_NUM_THREADS": int(threads),
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision == "fp32":  # the default is a cache in 8 bits
        settings["KV_CACHE_PRECISION"] = "f32"
    compiled = openvino.Core().compile_model(f"{out}/openvino_model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    names = {one.get_any_name() for one in compiled.inputs}
    _say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        _generate(request, names, asked["prompt"], asked["count"])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _generate(request: Any, names: set[str], prompt: list[int], count: int) -> None:
    """Print each token as soon as it is known."""
    import numpy as np

    request.reset_state()  # the KV cache of the prompt before
    ids, seen = np.array([prompt], dtype=np.int64), 0
    for _ in range(count):
        length = seen + ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((1, length), dtype=np.int64),
            "position_ids": np.arange(seen, length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        request.infer({name: value for name, value in given.items() if name in names})
        token = int(request.get_tensor("logits").data[0, -1].argmax())
        _say(str(token))
        ids, seen = np.array([[token]], dtype=np.int64), length


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "versions":
        _say(json.dumps(versions()))
    else:
        {"convert": convert, "serve": serve}[what](*given)
