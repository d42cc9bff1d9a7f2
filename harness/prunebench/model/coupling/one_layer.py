"""A first look at a guess: one layer alone, on what it read in the traced forward.

A state space or a latent attention has a hundred possible guesses. A layer costs a fraction of a
model, and a guess that gives other outputs of the layer cannot give the same logits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from prunebench.model.coupling.slices import is_transposed, narrow, owned
from prunebench.model.coupling.sub_block import SubBlock
from prunebench.model.coupling.trace import ModuleCall, tensors

_CLEAR = 1e-3
"""A difference of outputs, as a share of the largest one, that is certainly none of rounding."""


def copied(layer: torch.nn.Module, *, weights: bool) -> torch.nn.Module:
    """A copy of a layer to change; ``weights``: whether they are copied, too, not only replaced.

    Configs stay shared: nobody changes them in place, and copying them takes most of the time.
    """
    shared: dict[int, Any] = {}
    for module in layer.modules():
        if (config := vars(module).get("config")) is not None:
            shared[id(config)] = config
    if not weights:
        shared |= {id(parameter): parameter for parameter in layer.parameters()}
    return copy.deepcopy(layer, shared)


class OneLayer:
    """A layer of a small model, with what it was called with.

    A layer that does not give the same again, such as one that changes its input, has no opinion.
    """

    def __init__(self, layer: torch.nn.Module, call: ModuleCall | None) -> None:
        self.layer = layer
        self.call = call
        self._masked: dict[tuple[int, ...], torch.Tensor] = {}  # by the columns that are zero
        self.sure = call is not None and self._repeats(call)

    def contradicts(
        self, guess: SubBlock, groups: int, kept: Sequence[int], gone: Sequence[int]
    ) -> str | None:
        """Why the guess is wrong, or None if this layer does not show it.

        Raises whatever the code of the layer raises if it does not run as narrow as that.
        """
        if not self.sure:
            return None
        # The weights are replaced, never changed in place, so that the copy may share them.
        narrower = copied(self.layer, weights=False)
        narrow(narrower, guess, groups, kept)
        found, wanted = self._output(narrower), self._silent(guess, groups, gone)
        if found.shape != wanted.shape:
            return "sliced and masked outputs have other shapes"
        difference = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-6)
        if difference <= _CLEAR:
            return None
        return f"sliced and masked outputs differ by {difference:.1g} of the largest"

    def _silent(self, guess: SubBlock, groups: int, gone: Sequence[int]) -> torch.Tensor:
        """The output of the layer if these groups write nothing."""
        columns = owned(self.layer, guess, guess.cuts[-1], groups, gone)
        key = tuple(columns.tolist())
        if key not in self._masked:
            writer: Any = self.layer.get_submodule(guess.cuts[-1].linear)
            matrix = writer.weight.T if is_transposed(writer) else writer.weight  # [out, in]
            before = matrix[:, columns].clone()
            matrix[:, columns] = 0
            try:
                self._masked[key] = self._output(self.layer)
            finally:
                matrix[:, columns] = before
        return self._masked[key]

    def _repeats(self, call: ModuleCall) -> bool:
        try:
            return torch.equal(self._output(self.layer), call.outputs[0])
        except Exception:
            return False

    def _output(self, layer: torch.nn.Module) -> torch.Tensor:
        """The hidden states that the layer gives, [batch, length, hidden]."""
        assert self.call is not None
        with torch.no_grad():
            return next(tensors(layer(*self.call.args, **self.call.kwargs))).clone()
