"""Random pruning: the baseline that every criterion must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prunebench import LinearMethod, Method, hookimpl

if TYPE_CHECKING:
    from prunebench import LinearStats


class Random(LinearMethod):
    """Remove weights at random, the same exact share from every matrix."""

    name = "random"
    uses_seed = True

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        # Drawn on the CPU, so that the masks are the same on every device.
        return torch.rand(weight.shape, generator=stats.generator).to(weight.device)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Random
