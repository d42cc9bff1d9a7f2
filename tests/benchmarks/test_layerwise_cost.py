"""Cost of layer-by-layer methods, in passes of the dense decoder layers over the same tokens.

The floor counts operations: passes of the linears (the pass for the statistics ends before the last
linear, and nothing needs the output of the last pruned layer), half a product for each distinct
Hessian, its factorisation, and the sweep over the columns.
"""

from __future__ import annotations

import pytest
import torch

from decoder_passes import decoder_pass, pruning, pruning_between_passes
from evaluation import SPEC, windows_of
from prunebench import anatomy
from prunebench.measure.devices.memory import MemorySampler
from prunebench.measure.quality.perplexity import perplexity
from prunebench.model.surgery import remove_layers
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

# method, options, decoder passes at most on all layers (float32)
METHODS = [
    ("magnitude", {"sparsity": 0.5}, 0.5),
    ("wanda", {"sparsity": 0.5}, 2.05),
    ("wanda", {"sparsity": "2:4"}, 2.05),
    ("ria", {"sparsity": 0.5}, 2.05),
    ("dsnot", {"sparsity": 0.5}, 2.2),
    ("sparsegpt", {"sparsity": 0.5}, 2.45),
    ("sparsegpt", {"sparsity": "2:4"}, 2.55),
    ("shortgpt", {"count": 0}, 1.05),  # removes nothing, so that the next pass has all layers
    ("shortgpt", {"count": 0, "metric": "angular"}, 1.05),
]

STOPS = 4
"""How often a method stops for a part of the decoder pass that it is compared with."""
LAYERS = 10
"""Of the 30 layers, which are all alike."""
WINDOWS = 4
"""For two dtypes side by side."""
WANTED = {("sparsegpt", 0.5): 2.35}
"""Passes that are the goal, on all layers. A quiet machine reaches it; the limit leaves a few per
cent for others."""


def floor(model, name: str, tokens: torch.Tensor) -> float:
    """The operations that the method needs, in decoder passes."""
    parts = anatomy(model)
    windows, length = tokens.shape
    count = windows * length
    linears = [parts.linears(layer) for layer in parts.layers]
    heads = model.config.num_attention_heads * parts.head_dim(parts.layers[0])
    attention = (
        2 * count * length * heads
    )  # causal: half of queries x keys, and of weights x values
    layers = [
        2 * count * sum(linear.weight.numel() for linear in some.values()) + attention
        for some in linears
    ]
    whole = sum(layers)
    if name == "magnitude":
        return 0.0
    if name == "shortgpt":
        return 1.0
    last = sum(2 * count * list(some.values())[-1].weight.numel() for some in linears)
    work = whole - last + whole - layers[-1]
    if name == "sparsegpt":
        for some in linears:
            for group in parts.inputs_of(parts.layers[0]):
                size = some[group[0]].in_features
                rows = sum(some[one].out_features for one in group)
                work += count * size**2 + 2 * size**3 / 3 + rows * size**2
    return work / whole


@pytest.mark.parametrize(("name", "options", "limit"), METHODS)
def test_cost_in_decoder_passes(name, options, limit, cost) -> None:
    tokens = reference_tokens("calib")
    model = smollm2().model
    of_all = floor(model, name, tokens)
    remove_layers(model, range(LAYERS, 30))
    least = floor(model, name, tokens)
    # The last layer needs no second run, which is a larger share of fewer layers.
    saved = of_all - least
    limit -= saved
    goal = WANTED.get((name, options.get("sparsity")))
    decoder_pass(model, tokens[:2])
    before = states(tokens, model)
    with MemorySampler(gpu=False) as sampler:
        sampler.phase("prune")
        seconds, one = pruning_between_passes(model, name, options, tokens, STOPS)
        memory, _ = sampler.result()
    ratio = seconds / one
    beyond = memory.phases[-1].peak_rss_bytes - memory.baseline_rss_bytes
    cost(
        method=" ".join([name, *(f"{key}={value}" for key, value in options.items())])
        + f", {LAYERS} of 30 layers",
        dtype="float32",
        seconds=f"{seconds:.1f}",
        yardstick=f"decoder pass {one:.1f}",
        ratio=f"{ratio:.2f}",
        floor=f"{least:.2f}",
        limit=f"{limit:.2f}",
        wanted="" if goal is None else f"{goal - saved:.2f}",
        memory=f"{beyond / 2**20:.0f} MiB, states {before / 2**20:.0f}",
    )
    assert ratio <= limit


def states(tokens: torch.Tensor, model) -> int:
    """Bytes of the calibration states."""
    return tokens.numel() * model.config.hidden_size * 4


@pytest.mark.parametrize(
    ("name", "options"), [("wanda", {"sparsity": 0.5}), ("sparsegpt", {"sparsity": 0.5})]
)
def test_bfloat16_beside_float32(name, options, cost) -> None:
    """On some of the windows, in float32 and bfloat16; with perplexity on four windows."""
    tokens, evaluation = reference_tokens("calib")[:WINDOWS], reference_tokens("eval")[:4]
    seconds, quality = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = smollm2(dtype).model
        dense = decoder_pass(model, tokens[:2])
        seconds[dtype], _ = pruning(model, name, options, tokens)
        found = perplexity(model, windows_of(evaluation), SPEC)
        quality[dtype] = found.perplexity
        cost(
            method=f"{name} sparsity={options['sparsity']}, {WINDOWS} windows",
            dtype=dtype,
            seconds=f"{seconds[dtype]:.1f}",
            yardstick=f"decoder pass {WINDOWS / 2 * dense:.1f}",
            ratio=f"{seconds[dtype] / seconds['float32']:.2f} of float32",
            perplexity=f"{found.perplexity:.2f}",
        )
    assert quality["bfloat16"] == pytest.approx(quality["float32"], rel=0.05)
    assert seconds["bfloat16"] < seconds["float32"]
