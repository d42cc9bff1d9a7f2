"""SliceGPT in decoder passes over the same tokens, beside its eigenproblems alone; CPU time."""

from __future__ import annotations

import time

import pytest
import torch

from prunebench import Context, anatomy
from prunebench_plugins.slicegpt import SliceGPT, principal
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench


@torch.no_grad()
def test_slicegpt_beside_its_eigenproblems(cost) -> None:
    tokens = reference_tokens("calib")[:8]
    model = smollm2().model
    decoder = anatomy(model).decoder

    def decoder_pass() -> float:
        begun = time.process_time()
        for window in tokens:
            decoder(window[None], use_cache=False)
        return time.process_time() - begun

    decoder_pass()
    before = decoder_pass()
    gram = torch.randn(4096, 576, dtype=torch.float64)
    gram = gram.T @ gram
    begun = time.process_time()
    for _ in range(5):
        principal(gram)
    eigenproblems = (time.process_time() - begun) / 5 * 61
    after = decoder_pass()
    begun = time.process_time()
    SliceGPT(SliceGPT.Options()).prune(model, Context(tokens, 0, list(range(30))))
    seconds = time.process_time() - begun
    passes = (seconds - eigenproblems) / ((before + after) / 2)
    cost(
        method="slicegpt ratio=0.25, 8 windows",
        dtype="float32",
        seconds=f"{seconds:.1f}",
        yardstick=f"decoder pass {before:.1f}, {after:.1f}, eigenproblems {eigenproblems:.1f}",
        ratio=f"{passes:.2f}",
        limit="2.50",
    )
    assert passes <= 2.5
