"""BESA against the passes that it cannot do without: two of each layer, and a step per window.

The yardstick runs each layer over the calibration windows to gather and to go on, and forward and
backward, with gradients of the linears' weights, once for every window. Rounds alternate, and CPU
time counts, which other processes disturb less than the time on the clock.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from prunebench import Context, anatomy
from prunebench.measure.devices.memory import MemorySampler
from prunebench_plugins.besa import BESA
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

LAYERS = 1
ROUNDS = 2


class Passes:
    """The least that any training of a layer against its dense outputs does."""

    statistics = frozenset()
    options = BESA.Options(layers=(0, LAYERS))

    def train_layer(self, layer):
        weights = {
            name: linear.weight.detach().requires_grad_() for name, linear in layer.linears.items()
        }
        for batch in range(layer.batches):
            loss = (layer.forward(batch, weights) - layer.target(batch)).square().sum()
            torch.autograd.grad(loss, list(weights.values()))
        return {}

    def see_trained(self, layer, target, output) -> None:
        pass


@torch.no_grad()
def seconds(model, tokens, *, besa: bool) -> float:
    context = Context(tokens, 0, list(range(30)))
    begun = time.process_time()
    if besa:
        BESA(Passes.options).prune(model, context)
    else:
        context.train_layers(model, Passes(), changes=False)
    return time.process_time() - begun


@pytest.mark.parametrize(("windows", "length", "limit"), [(3, 2048, 1.3), (12, 512, 1.6)])
def test_besa_beside_its_forward_and_backward_passes(windows, length, limit, cost) -> None:
    tokens = reference_tokens("calib").reshape(-1, length)[:windows]
    model = smollm2().model
    seconds(model, tokens[:1], besa=True)
    pairs = [
        (seconds(model, tokens, besa=False), seconds(model, tokens, besa=True))
        for _ in range(ROUNDS)
    ]
    ratio = median(ours / plain for plain, ours in pairs)
    with MemorySampler(gpu=False) as sampler:
        sampler.phase("prune")
        seconds(model, tokens, besa=True)
        memory, _ = sampler.result()
    beyond = memory.phases[-1].peak_rss_bytes - memory.baseline_rss_bytes
    layer = sum(parameter.numel() * 4 for parameter in anatomy(model).layers[0].parameters())
    states = tokens.numel() * model.config.hidden_size * 4
    cost(
        method=f"besa, {windows} x {length} tokens",
        dtype="float32",
        seconds=f"{median(ours for _, ours in pairs):.1f}",
        yardstick=f"passes {median(plain for plain, _ in pairs):.1f}",
        ratio=f"{ratio:.2f}",
        limit=f"{limit:.2f}",
        memory=f"{beyond / 2**20:.0f} MiB, states {states / 2**20:.0f}, layer {layer / 2**20:.0f}",
    )
    assert ratio <= limit
