"""What is pruned as one matrix although it is no `torch.nn.Linear`: part of a larger parameter."""

from __future__ import annotations

from typing import Any

import torch


class Matrix:
    """A weight matrix [out, in] that is a view of a parameter; what is written to it stays there.

    It has those attributes of a `torch.nn.Linear` that methods read. ``index``: which expert of a
    parameter [experts, ...]; None if the parameter is one matrix. ``part``: which rows of that
    matrix, such as the gate's half of a fused gate and up. ``turned``: the parameter is stored as
    [in, out], as in a Conv1D. ``bias``: the name of the parameter with the bias.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        parameter: str,
        *,
        index: int | None = None,
        part: slice = slice(None),
        turned: bool = False,
        bias: str | None = None,
    ) -> None:
        self.module = module
        """The module that owns the parameter."""
        self.parameter = parameter
        """The parameter's name in the module."""
        self.index = index
        self._part = part
        self._turned = turned
        self._bias = bias

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part [out, in] of a tensor that has the shape of the parameter."""
        matrix = tensor if self.index is None else tensor[self.index]
        return (matrix.t() if self._turned else matrix)[self._part]

    @property
    def weight(self) -> torch.Tensor:
        """The matrix itself, [out, in]: a view without a gradient of its own."""
        return self.view(self.owner.detach())

    @property
    def owner(self) -> torch.Tensor:
        """The parameter that the matrix is a part of."""
        return self.module.get_parameter(self.parameter)

    @property
    def bias(self) -> torch.Tensor | None:
        """What is added to the output, [out]; None if nothing is."""
        found: Any = None if self._bias is None else getattr(self.module, self._bias, None)
        if found is None:
            return None
        bias = found.detach() if self.index is None else found.detach()[self.index]
        return bias[self._part]  # type: ignore[no-any-return]

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return int(self.weight.shape[0])

    def __repr__(self) -> str:
        return (
            f"Matrix({self.parameter}, index={self.index}, {self.out_features}x{self.in_features})"
        )
