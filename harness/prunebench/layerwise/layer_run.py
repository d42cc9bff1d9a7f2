"""One decoder layer over all calibration batches, and the statistics of its linears' inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from prunebench.layerwise.capture import Call, run_layer
from prunebench.layerwise.device_moves import moved
from prunebench.layerwise.statistics import InputStatistic, Statistic, input_statistics
from prunebench.model.experts import ExpertRows, find_experts, observed_experts, reads
from prunebench.model.matrices import Matrix

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Gathered:
    """What was gathered of one input."""

    statistics: dict[str, InputStatistic]
    """By name."""
    tokens: int = 0
    """Rows of the input: tokens of the calibration, or those that were routed to an expert."""

    def add(self, inputs: torch.Tensor, windows: int) -> None:
        """Add the inputs [tokens, in] of a batch of ``windows`` windows."""
        self.tokens += len(inputs)
        for statistic in self.statistics.values():
            statistic.add(inputs, windows)


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

    @property
    def states(self) -> list[torch.Tensor]:
        """The layer's input for every batch."""
        return [states for states, _ in self.batches]

    def forward(
        self, states: torch.Tensor, call: Call, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The layer's output for one batch, on the device that computes.

        ``weights``, each [out, in], replace those of linears, by their path in the layer.
        """
        there = Call(moved(call.args, self.device), moved(call.kwargs, self.device))
        parameters = self._parameters(weights) if weights else None
        return run_layer(self.layer, moved(states, self.device), there, parameters)

    def _parameters(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The layer's parameters with these matrices in them, by their path in the layer."""
        # `functional_call` takes whole parameters, by name.
        found: dict[str, torch.Tensor] = {}
        paths = {id(module): path for path, module in self.layer.named_modules()}
        for name, weight in weights.items():
            linear = self.linear(name)
            if not isinstance(linear, Matrix):
                found[f"{name}.weight"] = weight
                continue
            path = f"{paths[id(linear.module)]}.{linear.parameter}"
            # Several matrices may be in one parameter, such as those of the experts.
            whole = found.setdefault(path, linear.owner.detach().clone())
            linear.view(whole).copy_(weight)
        return found

    def advance(self) -> None:
        """Replace the states of every batch by the layer's output."""
        for states, call in self.batches:
            states.copy_(self.forward(states, call))

    def gather(
        self,
        linears: Sequence[str],
        statistics: Collection[Statistic],
        into: Sequence[torch.Tensor] | None = None,
    ) -> list[Gathered]:
        """Gather the statistics of the inputs of these linears over all batches, in their order.

        A forward ends as soon as all inputs were seen, unless there is a tensor for each batch to
        write its output ``into``; these may be the states themselves.
        """
        tapped = [self.linear(name) for name in linears]
        to_the_end = into is not None
        taps = _InputTaps(self.layer, tapped, statistics, to_the_end=to_the_end)
        if to_the_end or (taps.kinds and linears):
            with taps:
                for batch, (states, call) in enumerate(self.batches):
                    taps.start_batch(windows=len(states))
                    # Without ``into`` the rest of the layer would be computed for nothing.
                    with suppress(_AllInputsSeen):
                        output = self.forward(states, call)
                    taps.end_batch()
                    if into is not None:
                        into[batch].copy_(output)
        return taps.gathered


class _AllInputsSeen(Exception):  # noqa: N818 - no error: it ends a forward early
    """Nothing behind the last tapped input is needed."""


class _InputTaps:
    """Adds the inputs of linears to statistics while used as a context manager."""

    def __init__(
        self,
        layer: nn.Module,
        linears: Sequence[Any],
        statistics: Collection[Statistic],
        *,
        to_the_end: bool,
    ) -> None:
        self.kinds = input_statistics(statistics)
        self.gathered = [
            Gathered(
                {
                    name: kind(linear.in_features, linear.weight.device)
                    for name, kind in self.kinds.items()
                }
            )
            for linear in linears
        ]
        self._layer = layer
        self._linears = linears
        self._to_the_end = to_the_end
        self._stack = ExitStack()
        self._unseen: set[int]  # of this batch: places in `gathered` that are still to come
        self._running: set[int]  # of this batch: modules, by id, that have not run yet
        self._windows: int

    def start_batch(self, windows: int) -> None:
        """Call before each forward; ``windows`` go through the layer in it."""
        self._unseen, self._windows = set(range(len(self._linears))), windows
        self._running = {id(_module(linear)) for linear in self._linears}

    def end_batch(self) -> None:
        """Call after each forward, also after one that ended early."""
        for place in self._unseen:  # experts that no token of the batch was routed to
            linear = self._linears[place]
            self.gathered[place].add(linear.weight.new_empty(0, linear.in_features), self._windows)

    def __enter__(self) -> Self:
        seen_by: dict[int, dict[tuple[int, str], int]] = {}  # module -> expert and input -> place
        for place, linear in enumerate(self._linears):
            if is_fused_expert(linear):
                inside = seen_by.setdefault(id(linear.module), {})
                inside[linear.index, reads(linear)] = place
            else:
                hook = self._hook(place)
                self._stack.callback(_module(linear).register_forward_pre_hook(hook).remove)
        observers = {}
        for experts in find_experts(self._layer).values():
            if (places := seen_by.get(id(experts.module))) is not None:
                observers[experts] = partial(self._add_rows, places)
                ended = experts.module.register_forward_hook(self._experts_ended)
                self._stack.callback(ended.remove)
        if observers:
            self._stack.enter_context(observed_experts(observers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _hook(self, place: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            self._add(place, args[0])
            self._ended(module)

        return hook

    def _add_rows(self, places: Mapping[tuple[int, str], int], rows: ExpertRows) -> None:
        for read, inputs in (("inputs", rows.inputs), ("intermediate", rows.intermediate)):
            place = places.get((rows.expert, read))
            if place is not None:
                self._add(place, inputs)

    def _experts_ended(self, module: Any, args: Any, output: Any) -> None:
        del args, output
        self._ended(module)

    def _add(self, place: int, inputs: torch.Tensor) -> None:
        # OPT flattens windows and length before its MLP; others pass [windows, length, in].
        self.gathered[place].add(inputs.reshape(-1, inputs.shape[-1]), self._windows)
        self._unseen.discard(place)

    def _ended(self, module: Any) -> None:
        """End the forward if all modules with tapped inputs have run."""
        self._running.discard(id(module))
        if not self._running and not self._to_the_end:
            raise _AllInputsSeen


def _module(linear: Any) -> Any:
    """The module that reads the input of a linear, or of a `Matrix` such as a Conv1D's."""
    return linear.module if isinstance(linear, Matrix) else linear


def is_fused_expert(linear: Any) -> bool:
    """Whether this is a part of a parameter that holds several experts."""
    return isinstance(linear, Matrix) and linear.index is not None
