"""LLM-Pruner against a plain forward and backward pass over the same tokens, in one run."""

from __future__ import annotations

import copy
import time
from statistics import median
from typing import Any

import pytest
import torch

from cpu_time import beside_neighbours
from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

ROUNDS = 3


def backward_passes(model, tokens: torch.Tensor, layers: range, together: int) -> float:
    """Seconds of forward and backward over the tokens; gradients of these layers add up."""
    parts = anatomy(model)
    weights = [
        linear.weight for index in layers for linear in parts.linears(parts.layers[index]).values()
    ]
    for weight in weights:
        weight.requires_grad = True
    begun = time.perf_counter()
    for batch in tokens.split(together):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        ).backward()
    seconds = time.perf_counter() - begun
    for weight in weights:
        weight.grad, weight.requires_grad = None, False
    return seconds


@pytest.mark.parametrize(("taylor", "together"), [("param_first", 8), ("param_mix", 1)])
def test_pruning_costs_at_most_its_backward_passes_and_a_fifth(
    taylor: str, together: int, figure: Any
) -> None:
    """On 10 windows of 64 tokens, as published; for second order, naively a pass per window."""
    tokens = reference_tokens("calib")[:10, :64]
    cls = load_plugins()["method"]["llm-pruner"].value
    method = cls(cls.Options(ratio=0.5, taylor=taylor))
    model = smollm2().model.requires_grad_(requires_grad=False)
    layers = method.options.layers(30, "mlp")
    backward_passes(model, tokens[:together], layers, together)
    passes, prunings = [backward_passes(model, tokens, layers, together)], []
    for _ in range(ROUNDS):
        dense = copy.deepcopy(model)
        begun = time.perf_counter()
        with torch.no_grad():
            method.prune(dense, Context(tokens, 0, list(range(30))))
        prunings.append(time.perf_counter() - begun)
        passes.append(backward_passes(model, tokens, layers, together))
    ratio = median(beside_neighbours(prunings, passes))
    figure(
        f"LLM-Pruner, {taylor} / its backward passes",
        f"{ratio:.2f} ({median(prunings):.1f} s of {median(passes):.1f})",
        "at most 1.2",
    )
    assert ratio <= 1.2
