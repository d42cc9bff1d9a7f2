"""One decoder layer over all calibration batches, and the statistics of its linears' inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from prunebench.layerwise.capture import Call, run_layer
from prunebench.layerwise.device_moves import moved
from prunebench.layerwise.statistics import InputStatistic, Statistic, input_statistics
from prunebench.model.matrices import Matrix

if TYPE_CHECKING:
    from torch import nn

Gathered = dict[str, InputStatistic]
"""The statistics of one input by name."""


@dataclass(frozen=True)
class LayerRun:
    """A decoder layer and the hidden states that go through it."""

    index: int
    path: str
    """Path of the layer in the model."""
    layer: nn.Module
    batches: Sequence[tuple[torch.Tensor, Call]]
    """States [windows of the batch, length, hidden], and how the layer is called with them."""
    device: torch.device | None
    """Where the layer computes; None: where the states are."""
    linears: Mapping[str, Any]
    """The layer's prunable matrices by path."""

    def linear(self, name: str) -> Any:
        """The matrix at this path inside the layer."""
        return self.linears[name]

    def forward(self, states: torch.Tensor, call: Call) -> torch.Tensor:
        """The layer's output for one batch, on the device that computes."""
        there = Call(moved(call.args, self.device), moved(call.kwargs, self.device))
        return run_layer(self.layer, moved(states, self.device), there)

    def advance(self) -> None:
        """Replace the states of every batch by the layer's output."""
        for states, call in self.batches:
            states.copy_(self.forward(states, call))

    def gather(
        self, linears: Sequence[str], statistics: Collection[Statistic], *, advance: bool = False
    ) -> list[Gathered]:
        """Gather the statistics of the inputs of these linears over all batches, in their order.

        A forward ends as soon as all inputs were seen, unless ``advance``: then it runs to the end,
        and its output replaces the batch's states.
        """
        taps = _InputTaps([self.linear(name) for name in linears], statistics, to_the_end=advance)
        if advance or (taps.kinds and linears):
            with taps:
                for states, call in self.batches:
                    taps.start_batch(windows=len(states))
                    try:
                        output = self.forward(states, call)
                    except _AllInputsSeen:  # the rest of the layer would be computed for nothing
                        continue
                    if advance:
                        states.copy_(output)
        return taps.gathered


class _AllInputsSeen(Exception):  # noqa: N818 - no error: it ends a forward early
    """Nothing behind the last tapped input is needed."""


class _InputTaps:
    """Hooks on linears that add their inputs to statistics, while used as a context manager."""

    def __init__(
        self, linears: Sequence[Any], statistics: Collection[Statistic], *, to_the_end: bool
    ) -> None:
        self.kinds = input_statistics(statistics)
        self.gathered: list[Gathered] = [
            {
                name: kind(linear.in_features, linear.weight.device)
                for name, kind in self.kinds.items()
            }
            for linear in linears
        ]
        self._linears = linears
        self._to_the_end = to_the_end
        self._handles: list[Any] = []
        self._unseen: int  # of this batch: inputs that are still to come
        self._windows: int

    def start_batch(self, windows: int) -> None:
        """Call before each forward; ``windows`` go through the layer in it."""
        self._unseen, self._windows = len(self._linears), windows

    def __enter__(self) -> Self:
        self._handles = [
            _module(linear).register_forward_pre_hook(self._hook(found))
            for linear, found in zip(self._linears, self.gathered, strict=True)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, found: Gathered) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            # OPT flattens windows and length before its MLP; others pass [windows, length, in].
            inputs = args[0].reshape(-1, args[0].shape[-1])  # [tokens, in]
            for statistic in found.values():
                statistic.add(inputs, self._windows)
            self._unseen -= 1
            if self._unseen == 0 and not self._to_the_end:
                raise _AllInputsSeen

        return hook


def _module(linear: Any) -> Any:
    """The module that reads the input of a linear, or of a `Matrix` such as a Conv1D's."""
    return linear.module if isinstance(linear, Matrix) else linear
