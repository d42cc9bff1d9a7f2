"""ShortGPT against its yardstick: one pass of the dense decoder layers over the same tokens, in the same run."""

from __future__ import annotations

import time

import pytest
import torch

from prunebench import Context, anatomy
from prunebench.plugin.host import load_plugins
from smollm2 import reference_tokens, smollm2

pytestmark = pytest.mark.bench


@torch.no_grad()
def decoder_pass(model, tokens: torch.Tensor) -> float:
    """Seconds of one pass of the decoder layers, window by window, no head: the yardstick of the reference results."""
    begun = time.perf_counter()
    for window in tokens:
        anatomy(model).decoder(window[None], use_cache=False)
    return time.perf_counter() - begun


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_shortgpt_takes_at_most_one_point_nought_five_decoder_passes(metric: str) -> None:
    tokens = reference_tokens("calib")
    cls = load_plugins().methods["shortgpt"].value
    model = smollm2().model
    decoder_pass(model, tokens[:2])
    passes, prunings = [], []
    for some in tokens.split(2):  # alternating, quickest of each: what else the machine does only ever adds time
        passes.append(decoder_pass(model, some))
        begun = time.perf_counter()
        with torch.no_grad():
            # Nothing goes, so that the next pass has all layers; what is measured does not depend on it.
            cls(cls.Options(metric=metric, count=0)).prune(model, Context(some, 0, list(range(30))))
        prunings.append(time.perf_counter() - begun)
    ratio = min(prunings) / min(passes)
    print(
        f"shortgpt {metric}: {min(prunings):.2f} s for 2 windows, decoder pass {min(passes):.2f} s, ratio {ratio:.3f}"
    )
    assert ratio <= 1.05
