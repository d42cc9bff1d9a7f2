"""What a method may ask to know of a linear's inputs, gathered batch by batch while the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

PANEL = 192
"""Rows of a Hessian that one matrix product computes, from the diagonal on: the whole square would be twice the work."""
WIDE_PANEL = 2048
"""The same for the CPU's bfloat16 units, whose products into a part of a matrix cost copies."""


class InputStatistic(Protocol):
    """One statistic of one input; made with the number of features and the device to gather on."""

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        """Take in a batch: inputs [tokens, in] of any floating type, from so many windows."""

    def result(self) -> torch.Tensor:
        """The statistic, float32. Ends the gathering."""

    def finite(self) -> bool:
        """Whether all inputs up to now were finite."""


class InputNorm:
    """L2 norm of every input feature: sqrt(sum over tokens of x^2 / windows), float32 [in].

    A running mean of squared norms, in the order of operations of Wanda's released code: near-ties between scores
    then fall as they do there, and one that falls otherwise would change all that comes after it.
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
    """2 / windows * sum over tokens of x x^T, float32 [in, in]: the Hessian of a linear's squared output error.

    Scaled as in GPTQ and SparseGPT's released code. Only panels on and above the diagonal are computed; the rest is their mirror.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, device=device)
        self.windows = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        self.windows += windows
        x = inputs.float()
        exact = inputs.dtype == torch.bfloat16 and inputs.device.type == "cpu"
        rows = WIDE_PANEL if exact else PANEL
        with _bfloat16_products() if exact else nullcontext():
            for start in range(0, len(self.total), rows):
                panel = slice(start, start + rows)
                self.total[panel, start:].addmm_(x[:, panel].t(), x[:, start:])

    def finite(self) -> bool:
        return bool(torch.isfinite(self.total.diagonal()).all())  # |h_ij|^2 <= h_ii h_jj

    def result(self) -> torch.Tensor:
        self.total.mul_(2 / self.windows)
        for start in range(0, len(self.total), PANEL):
            end = start + PANEL
            square = self.total[start:end, start:end]
            square.copy_(square.triu() + square.triu(1).t())
            self.total[end:, start:end] = self.total[start:end, end:].t()
        return self.total


STATISTICS: Mapping[str, Callable[[int, torch.device], InputStatistic]] = {
    "input_norm": InputNorm,
    "hessian": Hessian,
}


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Within, float32 products on the CPU use its bfloat16 units, if it has them; they sum in float32.

    For numbers that came as bfloat16: rounding them to it changes nothing, so the result is as exact, in less time.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
