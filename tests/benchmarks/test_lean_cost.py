"""A token by `lean` and `lean-packed` beside `generate()`, and every product by every kernel.

Process CPU time of one thread, in rounds that alternate: what others compute hardly distorts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from prunebench.measure.speed.compare_forms import greedy_generation
from prunebench.measure.speed.lean_decoder import Lean
from prunebench.measure.speed.products import KERNELS, seconds_of
from smollm2 import smollm2

pytestmark = pytest.mark.bench

PROMPT, TOKENS, ROUNDS = 64, 17, 6
WANTED = {"float32": 0.66, "bfloat16": 0.55}
"""Of `generate()` in float32, on a processor with AVX512-BF16 and without AMX (AMD EPYC)."""
NOISE = 1.05
"""Plain `lean` may be this much faster than the form that was chosen by timing single products."""


def generate_s(model: Any, prompt: torch.Tensor) -> float:
    """Process seconds of a token by `generate()`: the difference removes the prompt."""

    def seconds(tokens: int) -> float:
        before = time.process_time()
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, pad_token_id=0
        )
        return time.process_time() - before

    with greedy_generation(model):
        return (seconds(TOKENS) - seconds(1)) / (TOKENS - 1)


def lean_s(decoder: Lean, prompt: torch.Tensor) -> float:
    token = decoder.prompt(prompt)
    before = time.process_time()
    for _ in range(TOKENS - 1):
        token = decoder.step(token)
    return (time.process_time() - before) / (TOKENS - 1)


@torch.inference_mode()
def test_a_token_before_and_after_packing(one_thread, cost) -> None:
    models = {dtype: smollm2(dtype).model for dtype in WANTED}
    vocabulary = models["float32"].config.vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (1, PROMPT), generator=generator)
    runs: dict[str, Callable[[], float]] = {
        "generate() float32": lambda: generate_s(models["float32"], prompt)
    }
    decoders: dict[str, Lean] = {}
    for dtype, model in models.items():
        for form, packed in (("lean", False), ("lean-packed", True)):
            each = Lean(model, 1, PROMPT + TOKENS, packed=packed)
            decoders[f"{form} {dtype}"] = each
            runs[f"{form} {dtype}"] = lambda each=each: lean_s(each, prompt)
        show_products(model, decoders[f"lean-packed {dtype}"])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for name, run in runs.items():
            times[name].append(run())
    middle = {name: median(each[1:]) for name, each in times.items()}
    base = middle["generate() float32"]
    able = getattr(torch.cpu, "get_capabilities", dict)()
    such = bool(able.get("avx512_bf16")) and not able.get("amx_bf16")
    for name, seconds in middle.items():
        form, dtype = name.split()
        cost(
            method=form,
            dtype=dtype,
            seconds=f"{seconds * 1e3:.1f} ms a token",
            yardstick=f"generate() float32 {base * 1e3:.1f} ms",
            ratio=f"{seconds / base:.2f}",
            limit=f"{WANTED[dtype]:.2f}" if form == "lean-packed" else "",
            memory=f"{decoders[name].products.copied_bytes / 2**20:.0f} MiB of copies"
            if name in decoders
            else "",
        )
    for dtype, limit in WANTED.items():
        packed = middle[f"lean-packed {dtype}"]
        assert packed <= NOISE * middle[f"lean {dtype}"]
        if such:
            assert packed / base <= limit


def show_products(model: Any, packed: Lean) -> None:
    """Print the microseconds of every product by every kernel."""
    for shape, kernel in packed.products.kernels.items():
        rows, columns = map(int, shape.split(" x "))
        times = seconds_of(torch.empty(rows, columns, dtype=model.dtype), 1)
        told = "  ".join(f"{name} {times[name] * 1e6:6.0f}" for name in KERNELS if name in times)
        print(f"{model.dtype} {shape:12} us: {told}  taken: {kernel}")
