"""SliceGPT in decoder passes over the same tokens, beside its eigenproblems alone; CPU time."""

from __future__ import annotations

import pytest
import torch

from cpu_time import cpu_timed
from decoder_passes import decoder_pass
from prunebench import Context
from prunebench_plugins.slicegpt import SliceGPT, principal
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench


@torch.no_grad()
def test_slicegpt_beside_its_eigenproblems(cost) -> None:
    tokens = reference_tokens("calib")[:8]
    model = smollm2().model

    def dense() -> float:
        return cpu_timed(lambda: decoder_pass(model, tokens))[1]

    decoder_pass(model, tokens[:1])
    before = dense()
    gram = torch.randn(4096, 576, dtype=torch.float64)
    gram = gram.T @ gram
    eigenproblems = cpu_timed(lambda: [principal(gram) for _ in range(5)])[1] / 5 * 61
    after = dense()
    context = Context(tokens, 0, list(range(30)))
    seconds = cpu_timed(lambda: SliceGPT(SliceGPT.Options()).prune(model, context))[1]
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
