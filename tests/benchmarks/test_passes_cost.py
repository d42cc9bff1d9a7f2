"""What measuring quality costs beside the passes of the model that it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
import torch

from cpu_time import cpu_timed
from evaluation import SPEC, windows_of
from live_logits import LiveLogits
from prunebench import MetricContext
from prunebench.measure.quality.perplexity import perplexity
from prunebench.measure.quality.split_model import split_model
from prunebench.measure.quality.text_passes import TextPasses
from prunebench.plugin.host import load_plugins
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench

ROUNDS = 3
WINDOWS, LENGTH = 2, 1024
"""64 windows take 32 times as long and have the same ratio: windows go through one by one."""
SHARED = 512
"""Tokens of each window that tell which ones go through which model."""


@pytest.fixture(scope="module")
def model() -> Any:
    return smollm2().model


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return reference_tokens("eval").reshape(-1, LENGTH)[:WINDOWS]


@torch.inference_mode()
def bare(model, tokens: torch.Tensor) -> float:
    """CPU seconds of the decoder and of the head in slices; nothing is done with the logits."""
    split, _ = split_model(model, tokens[:1, :4])
    begun = time.process_time()
    for window in tokens:
        states = split.decoder(window[None], use_cache=False).last_hidden_state[0]
        for chunk in split.chunks(len(states)):
            split.head(states[chunk])
    return time.process_time() - begun


@contextmanager
def timed_inside(*modules: torch.nn.Module) -> Iterator[list[float]]:
    """CPU seconds of each call of one of the modules in the block."""
    begun, found = [], []
    hooks = []
    for module in modules:
        hooks += [
            module.register_forward_pre_hook(lambda *_: begun.append(time.process_time())),
            module.register_forward_hook(
                lambda *_: found.append(time.process_time() - begun.pop())
            ),
        ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def test_perplexity_beside_bare_passes(model, tokens, figure) -> None:
    """What perplexity does beside the decoder and the head, which are timed inside it.

    Timed apart, they would meet another state of the machine. They take no longer than bare ones.
    """
    ratios, slower = [], []
    bare(model, tokens[:1])
    for _ in range(ROUNDS):
        with timed_inside(model.base_model, model.lm_head) as inside:
            whole = cpu_timed(lambda: perplexity(model, windows_of(tokens), SPEC))[1]
        ratios.append(whole / sum(inside))
        slower.append(sum(inside) / bare(model, tokens))
    figure(
        f"perplexity of {WINDOWS} x {LENGTH} tokens / its passes and head",
        f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        "at most 1.03",
    )
    figure(
        "its passes and head / bare ones",
        f"{median(slower):.3f} ({min(slower):.3f} to {max(slower):.3f})",
        "at most 1.1",
    )
    with LiveLogits(model.config.vocab_size) as live:
        perplexity(model, windows_of(tokens[:1]), SPEC)
    figure("logits in memory", f"{live.peak / 1e6:.0f} MB", "under 64 MB")
    assert live.peak < 64e6
    assert median(ratios) <= 1.03
    assert min(slower) <= 1.1


def test_metrics_share_the_passes_of_perplexity(
    model, tokens, figure, tmp_path, monkeypatch
) -> None:
    """In the second cell of a model: its own text once, and no pass of the dense model."""
    tokens = tokens[:, :SHARED]
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    metrics = load_plugins()["metric"]
    of_model = rows_through(model)

    @torch.no_grad()
    def cell() -> dict[str, float]:
        passes = TextPasses(lambda: "smollm2")
        spent = {}
        begun = time.process_time()
        keep = passes.keep(model, tokens)
        perplexity(model, windows_of(tokens), SPEC, keep=keep)
        spent["perplexity"] = time.process_time() - begun
        for name in ("kl-divergence", "draft-acceptance"):
            kind = metrics[name].value
            context = MetricContext(tokens, 0, load_dense=lambda: dense, passes=passes)
            begun = time.process_time()
            kind(kind.Options()).measure(model, None, context)
            spent[name] = time.process_time() - begun
        passes.close()
        return spent

    dense = smollm2().model
    of_dense = rows_through(dense)
    first = cell()
    passed = sum(of_dense)
    of_model.clear()
    of_dense.clear()
    second = cell()
    written = len(tokens) * (64 + 64 + 7)
    figure("tokens through dense in later cells", f"{sum(of_dense)} (first cell: {passed})", "none")
    figure(
        "tokens through the pruned model / its texts",
        f"{sum(of_model) / (tokens.numel() + written):.2f}",
        "1, and a few to see how the model is made",
    )
    figure(
        "perplexity, KL and draft acceptance / perplexity alone",
        f"{sum(second.values()) / second['perplexity']:.2f} (first cell of a model:"
        f" {sum(first.values()) / first['perplexity']:.2f})",
    )
    assert not of_dense
    assert sum(of_model) <= tokens.numel() + written + 100


def rows_through(model) -> list[int]:
    """The tokens of each pass of the decoder from now on."""
    seen: list[int] = []

    def see(_: Any, args: Any, kwargs: Any, out: Any) -> None:
        del kwargs
        seen.append(out.last_hidden_state.shape[:2].numel())

    model.base_model.register_forward_hook(see, with_kwargs=True)
    return seen
