"""What DSnoT adds to the method whose mask it refines, in passes of the decoder layers.

It is compared with that method alone, on the same windows: a difference, divided by a pass. A pass
grows with the tokens, and the exchanges do not, so both are told apart. They order the weights
of every row, which takes longer than the published 50 cycles. CPU time of all threads. All layers
are alike, so a third of them gives the same figures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import prunebench_plugins.dsnot as dsnot_plugin
from cpu_time import cpu_timed
from decoder_passes import decoder_pass, pruning
from prunebench.model.surgery import remove_layers
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

WINDOWS, PUBLISHED = 4, 128 * 2048
"""Windows of 512 tokens, and the tokens of the published calibration."""
LAYERS = 10
"""Of the 30 layers."""
INITIAL = ("magnitude", "wanda")
MOST = {"mlp": 0.02, "no_skip": 0.05}
"""Passes that the exchanges take at most with the published calibration, by what is skipped."""


def dense() -> Any:
    model = smollm2().model
    remove_layers(model, range(LAYERS, 30))
    return model


def pruned(name: str, options: dict[str, Any], tokens: torch.Tensor) -> float:
    """CPU seconds of pruning a fresh model: the mask decides what there is to exchange."""
    model = dense()
    return cpu_timed(lambda: pruning(model, name, options, tokens))[1]


def test_dsnot_beyond_the_mask_that_it_refines(cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes in front of it and behind it are the yardstick; one initial mask serves both ways."""
    tokens = reference_tokens("calib")[:WINDOWS]
    model = dense()
    decoder_pass(model, tokens[:1])
    exchanging = 0.0
    exchange = dsnot_plugin.exchange

    def timed(*arguments: Any) -> Any:
        nonlocal exchanging
        found, seconds = cpu_timed(lambda: exchange(*arguments))
        exchanging += seconds
        return found

    monkeypatch.setattr(dsnot_plugin, "exchange", timed)
    before = cpu_timed(lambda: decoder_pass(model, tokens))[1]
    rows = []
    for initial in INITIAL:
        base = pruned(initial, {"sparsity": 0.5}, tokens)
        for skip in MOST:
            options = {"sparsity": 0.5, "initial_method": initial, "skip_layer": skip}
            exchanging = 0.0
            whole = pruned("dsnot", options, tokens)
            rows.append((initial, skip, base, whole, exchanging))
    one = (before + cpu_timed(lambda: decoder_pass(model, tokens))[1]) / 2
    for initial, skip, base, whole, cycles in rows:
        beyond = (whole - base - cycles) / one
        published = cycles / one * tokens.numel() / PUBLISHED
        print(
            f"\ndsnot on {initial}, {skip}: a pass {one:.1f} s, the mask alone {base:.1f} s, with"
            f" dsnot {whole:.1f} s, of which exchanges {cycles:.1f} s: {cycles / one:.2f} passes"
            f" here, {published:.3f} with the published calibration (at most {MOST[skip]})"
        )
        cost(
            method=f"dsnot on {initial}, {skip}, without exchanges, {LAYERS} of 30 layers",
            dtype="float32",
            seconds=f"{whole:.1f}",
            yardstick=f"the mask alone {base:.1f}, pass {one:.1f}",
            ratio=f"{beyond:.2f} passes",
        )
        assert published <= MOST[skip]
