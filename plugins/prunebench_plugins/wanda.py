"""Wanda: remove the weights with the smallest |w| * ||x|| (arXiv:2306.11695, equation 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from prunebench import LinearMethod, Method, Reference, hookimpl

if TYPE_CHECKING:
    import torch

    from prunebench import LinearStats


class Wanda(LinearMethod):
    """Remove the smallest |w| * ||x|| of every output row, or of every group for N:M."""

    name = "wanda"
    reference = Reference(
        title="A Simple and Effective Pruning Approach for Large Language Models",
        arxiv="2306.11695",
        code="https://github.com/locuslab/wanda",
    )
    statistics: ClassVar = frozenset({"input_norm"})
    group = "row"

    def score(self, weight: torch.Tensor, stats: LinearStats) -> torch.Tensor:
        return weight.abs().float() * stats.input_norm  # [out, in] * [in]


@hookimpl
def prunebench_register_method() -> type[Method]:
    return Wanda
