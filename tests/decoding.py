"""What a decoder and what `generate()` write: one greedy loop and one call for all tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def tokens_of(decoder: Any, prompt: Tensor, count: int) -> Tensor:
    """The ``count`` tokens behind int64 [batch, prompt], each the most likely: [batch, count]."""
    found = [decoder.prompt(prompt).clone()]
    for _ in range(count - 1):
        found.append(decoder.step(found[-1]).clone())  # a fixed form gives the same tensor again
    return torch.cat(found, 1)


def generated(model: Any, prompt: Tensor, count: int, *, use_cache: bool = True) -> Tensor:
    """``prompt`` and ``count`` tokens of `generate()`, each the most likely, behind it."""
    written: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        use_cache=use_cache,
    )
    return written
