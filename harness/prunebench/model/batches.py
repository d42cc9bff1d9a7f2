"""How many token windows go through a model together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens a batch: enough to keep the matrix products busy, few enough for the caches and for memory to be reused."""


def windows_per_batch(length: int, device: torch.device) -> int:
    """Windows of ``length`` tokens that make a batch on ``device``; at least one."""
    return max(1, BATCH_TOKENS.get(device.type, 2048) // length)
