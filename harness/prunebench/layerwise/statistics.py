"""Statistics of a linear's input, gathered batch by batch while the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch

Statistic = Literal["input_norm", "hessian"]

PANEL = 192
"""Rows of a Hessian that one matrix product computes, from the diagonal to the right.

Narrow panels leave out most of the lower triangle; the whole square would be twice the work.
"""
WIDE_PANEL = 2048
"""The same for the CPU's bfloat16 units: their products into a part of a matrix cost copies."""


class InputStatistic(Protocol):
    """One statistic of one input, made from the number of features and the device to gather on."""

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        """Add a batch: inputs [tokens, in] of any floating type, taken from ``windows`` windows."""

    def result(self) -> torch.Tensor:
        """The statistic, float32. Nothing can be added afterwards."""

    def finite(self) -> bool:
        """Whether all inputs so far were finite."""


class InputNorm:
    """L2 norm of every input feature: sqrt(sum over tokens of x^2 / windows), float32 [in].

    A running mean of squared norms, in the same order of operations as Wanda's released code: then
    near-ties between scores fall the same way. One tie that falls differently changes the inputs of
    all later layers.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.mean = torch.zeros(features, device=device)
        self.windows = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        before, self.windows = self.windows, self.windows + windows
        self.mean.mul_(before / self.windows)
        self.mean.add_(torch.linalg.vector_norm(inputs.float(), dim=0) ** 2 / self.windows)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.mean).all())

    def result(self) -> torch.Tensor:
        return self.mean.sqrt_()


class Hessian:
    """The Hessian of a linear's squared output error: 2 / windows * sum over tokens of x x^T.

    float32 [in, in], scaled as in the released code of GPTQ and SparseGPT. It is symmetric: only
    panels on and above the diagonal are computed, and `result` mirrors them.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, device=device)
        self.windows = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        self.windows += windows
        x = inputs.float()  # [tokens, in]
        bfloat16 = inputs.dtype == torch.bfloat16 and inputs.device.type == "cpu"
        rows = WIDE_PANEL if bfloat16 else PANEL
        with _bfloat16_products() if bfloat16 else nullcontext():
            for start in range(0, len(self.total), rows):
                panel = slice(start, start + rows)
                # [rows, tokens] @ [tokens, in - start], added in place without a temporary matrix
                self.total[panel, start:].addmm_(x[:, panel].t(), x[:, start:])

    def finite(self) -> bool:
        # The diagonal is enough: |h_ij|^2 <= h_ii h_jj (Cauchy-Schwarz).
        return bool(torch.isfinite(self.total.diagonal()).all())

    def result(self) -> torch.Tensor:
        self.total.mul_(2 / self.windows)
        # In place, panel by panel: `triu() + triu(1).t()` of the whole would take two more
        # matrices.
        for start in range(0, len(self.total), PANEL):
            end = start + PANEL
            square = self.total[start:end, start:end]
            square.copy_(square.triu() + square.triu(1).t())
            self.total[end:, start:end] = self.total[start:end, end:].t()
        return self.total


STATISTICS: Mapping[Statistic, Callable[[int, torch.device], InputStatistic]] = {
    "input_norm": InputNorm,
    "hessian": Hessian,
}


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let float32 products on the CPU use its bfloat16 units, if it has them, in the block.

    Only for numbers that were bfloat16 before: rounding them changes nothing, and the units add in
    float32, so the result is as exact and takes less time.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
