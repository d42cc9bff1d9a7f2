"""Wanda and SparseGPT on a CUDA GPU, in passes of the decoder layers: `tox run -e gpu -- -s`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decoder_passes import decoder_pass, pruning
from prunebench import anatomy
from smollm2 import smollm2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

WINDOWS, LENGTH = 32, 1024


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_cost_in_decoder_passes(name: str, sparsity: float | str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 49152, (WINDOWS, LENGTH), generator=generator)
    pruning(smollm2().model.cuda(), name, {"sparsity": sparsity}, tokens[:2])  # compiles
    model = smollm2().model.cuda()
    decoder_pass(model, tokens[:2])
    before = decoder_pass(model, tokens)
    seconds, notes = pruning(model, name, {"sparsity": sparsity}, tokens)
    after = decoder_pass(model, tokens)
    passes = seconds / ((before + after) / 2)
    print(f"{name} {sparsity}: {passes:.2f} decoder passes ({seconds:.2f} s), notes {notes.keys()}")
    assert "not_compiled" not in notes
    assert 0.5 <= zeros_of(model) < 0.51, "the dense model has a few zeros of its own"


def zeros_of(model: Any) -> float:
    """The share of zeros in the linears of the decoder layers."""
    parts = anatomy(model)
    weights = [each.weight for layer in parts.layers for each in parts.linears(layer).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
