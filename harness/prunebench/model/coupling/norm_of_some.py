"""A norm of the residual stream that sees only the channels that are kept, for the proof."""

from __future__ import annotations

from typing import Any

import torch


class NormOfSome(torch.nn.Module):
    """``norm``, which has the kept channels alone, over those of all; zero at the others."""

    def __init__(self, norm: torch.nn.Module, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.kept = kept

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = torch.zeros_like(states)
        found[..., self.kept] = self.norm(states[..., self.kept], *args, **kwargs)
        return found
