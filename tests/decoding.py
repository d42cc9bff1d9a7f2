"""What a decoder writes: one greedy loop for all tests of forms."""

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
