"""Statistics of what a linear reads, gathered batch by batch while the layer runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Self

import numpy as np
import torch

from prunebench.errors import PluginError, did_you_mean

GRADIENTS = ("gradient", "gradient_norm")
"""Statistics of a linear's weights, not of its input: they take a backward pass of the model."""

PANEL = 96
"""Rows of a Hessian that one matrix product computes, from the diagonal to the right.

Narrow panels leave out most of the lower triangle; the whole square would be twice the work.
"""
WIDE_PANEL = 2048
"""The same for the CPU's bfloat16 units: their products into a part of a matrix cost copies."""
NUMPY_THREADS = 3
"""With more threads torch adds up columns faster than numpy, which takes one."""
NUMPY_ROWS = 64
"""Tokens whose squares are added up while they are in the cache."""


class InputStatistic(ABC):
    """One statistic of one input; subclass it and put the class into a method's ``statistics``.

    It is made for each input from the number of its features and the device to gather on, and
    `LinearStats` returns what `result` does: ``stats["my_statistic"]``.
    """

    name: ClassVar[str]

    def __init__(self, features: int, device: torch.device) -> None:
        self.features = features
        self.device = device

    @abstractmethod
    def add(self, inputs: torch.Tensor, windows: int) -> None:
        """Add a batch: inputs [tokens, in] of any floating type, taken from ``windows`` windows.

        There may be no tokens: those that an expert of a mixture was given of the batch.
        """

    @abstractmethod
    def result(self) -> torch.Tensor:
        """The statistic. Nothing can be added afterwards."""

    @classmethod
    def of_equal_features(cls, features: int, device: torch.device) -> Self:
        """The statistic of inputs whose features are all alike: each is 1 in one token, else 0.

        With it, methods that weigh a weight by its input fall back to its magnitude.
        """
        made = cls(features, device)
        made.add(torch.eye(features, device=device), 1)
        return made

    def finite(self) -> bool:
        """Whether all inputs so far were finite; override it if the harness should check that."""
        return True


class InputNorm(InputStatistic):
    """L2 norm of every input feature: sqrt(sum over tokens of x^2 / windows), float32 [in].

    A running mean of squared norms, window by window, in the same order of operations as Wanda's
    released code: then near-ties between scores fall the same way, whatever a batch is. One tie
    that falls differently changes the inputs of all later layers.
    """

    name = "input_norm"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.mean = torch.zeros(features, device=device)
        self.windows = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        # Of the tokens that an expert gets nobody knows here which windows they come from.
        x, split = inputs.float(), len(inputs) % windows == 0
        for part in x.chunk(windows) if split else [x]:
            before = self.windows
            self.windows += 1 if split else windows
            self.mean.mul_(before / self.windows)
            self.mean.add_(_column_norms(part) ** 2 / self.windows)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.mean).all())

    def result(self) -> torch.Tensor:
        return self.mean.sqrt_()


def _column_norms(x: torch.Tensor) -> torch.Tensor:
    """`torch.linalg.vector_norm(x, dim=0)` to the last bit; float32 [tokens, in] -> [in]."""
    if x.device.type != "cpu" or torch.get_num_threads() > NUMPY_THREADS:
        norms: torch.Tensor = torch.linalg.vector_norm(x, dim=0)
        return norms
    # Torch adds up one column after the other, and reads a cache line for every number. Numpy adds
    # whole rows, which is the same order within a column and takes a third of the time or less.
    # The square root is numpy's too, because `torch.sqrt` of a tensor rounds differently.
    rows = x.detach().numpy()  # [tokens, in]
    squares = np.empty((1 + NUMPY_ROWS, rows.shape[1]), dtype=np.float32)
    total = squares[0]  # the sum so far, as the first row to add
    total[:] = 0
    for start in range(0, len(rows), NUMPY_ROWS):
        some = rows[start : start + NUMPY_ROWS]
        np.square(some, out=squares[1 : 1 + len(some)])
        total[:] = np.add.reduce(squares[: 1 + len(some)], axis=0)
    return torch.from_numpy(np.sqrt(total))


class Hessian(InputStatistic):
    """The Hessian of a linear's squared output error: 2 / windows * sum over tokens of x x^T.

    float32 [in, in], scaled as in the released code of GPTQ and SparseGPT. It is symmetric: only
    panels on and above the diagonal are computed, and `result` mirrors them.
    """

    name = "hessian"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
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


class InputMean(InputStatistic):
    """Mean of every input feature over the tokens, float32 [in]."""

    name = "input_mean"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.mean = torch.zeros(features, device=device)
        self.tokens = 0

    def add(self, inputs: torch.Tensor, windows: int) -> None:  # noqa: ARG002
        if not len(inputs):
            return
        self.tokens += len(inputs)
        self.mean += (inputs.float().mean(dim=0) - self.mean) * (len(inputs) / self.tokens)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.mean).all())

    def result(self) -> torch.Tensor:
        return self.mean


class InputVariance(InputMean):
    """Variance of every input feature: mean over the tokens of (x - mean)^2, float32 [in]."""

    name = "input_variance"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.squares = torch.zeros(features, device=device)  # sum of (x - mean)^2

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        if not len(inputs):
            return
        x, before, tokens = inputs.float(), self.mean.clone(), self.tokens
        super().add(inputs, windows)
        batch = x.mean(dim=0)
        # Batches are joined as Chan, Golub and LeVeque do: no difference of two large sums.
        self.squares += (x - batch).square_().sum(dim=0)
        self.squares += (batch - before).square_() * (tokens * len(x) / self.tokens)

    def finite(self) -> bool:
        return super().finite() and bool(torch.isfinite(self.squares).all())

    def result(self) -> torch.Tensor:
        return self.squares / max(1, self.tokens)


class InputMax(InputStatistic):
    """The largest |x| of every input feature over the tokens, float32 [in]."""

    name = "input_max"

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.largest = torch.zeros(features, device=device)

    def add(self, inputs: torch.Tensor, windows: int) -> None:  # noqa: ARG002
        if not len(inputs):
            return
        # `amax` and `maximum` pass NaN on.
        self.largest = torch.maximum(self.largest, inputs.float().abs().amax(dim=0))

    def finite(self) -> bool:
        return bool(torch.isfinite(self.largest).all())

    def result(self) -> torch.Tensor:
        return self.largest


Statistic = str | type[InputStatistic]
"""What a method can ask for: a name, or a class of its own."""

STATISTICS: Mapping[str, type[InputStatistic]] = {
    kind.name: kind for kind in (InputNorm, Hessian, InputMean, InputVariance, InputMax)
}


def input_statistics(asked: Collection[Statistic]) -> dict[str, type[InputStatistic]]:
    """The classes of the input statistics that are ``asked`` for, by name; gradients are left out.

    Raises PluginError for a name that nothing has, or if ``asked`` is no collection of names.
    """
    if isinstance(asked, str) or not isinstance(asked, Collection):
        raise PluginError(
            f"statistics is {asked!r}, expected a set of names",
            hint=f"write `statistics = frozenset({{{asked!r}}})`",
        )
    found = {}
    for each in asked:
        if isinstance(each, type) and issubclass(each, InputStatistic):
            found[each.name] = each
        elif each in STATISTICS:
            found[str(each)] = STATISTICS[str(each)]
        elif each not in GRADIENTS:
            raise PluginError(
                f"statistics names {each!r}, which does not exist",
                hint=did_you_mean(str(each), [*STATISTICS, *GRADIENTS]),
            )
    return dict(sorted(found.items()))


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
