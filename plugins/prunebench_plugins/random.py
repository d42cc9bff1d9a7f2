"""Random pruning: the baseline that any criterion has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prunebench import LinearMethod, Method, hookimpl

if TYPE_CHECKING:
    from prunebench import LinearStats


class Random(LinearMethod):
    """Drop weights at random, exactly the share asked for in every matrix."""

    name = "random"
    uses_seed = True

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        return torch.rand(weight.shape, generator=stats.generator).to(weight.device)


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Random
