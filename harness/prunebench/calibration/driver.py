"""Walks the decoder layer by layer over the calibration windows.

A layer's inputs are captured once from the model itself, then only hidden states travel:

    states = inputs of layer 0
    for each layer:  run it dense, tap its linears' inputs -> prune its linears -> run it again -> states

so a layer is measured behind pruned predecessors, as SparseGPT and Wanda do it. Two runs a layer are the floor;
the first one ends at the last tapped input, since the layer's output is not needed before it is pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunebench.calibration.capture import Call, bare, batches_of, capture, run
from prunebench.errors import PrunebenchError
from prunebench.model.anatomy import anatomy

if TYPE_CHECKING:
    from torch import nn

    from prunebench.plugin.method import LinearMethod

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LinearStats:
    """What is known of one linear when it is pruned."""

    layer: int
    name: str
    generator: torch.Generator
    norm: torch.Tensor | None = None

    @property
    def input_norm(self) -> torch.Tensor:
        """L2 norm of each input feature over the calibration tokens, float32 [in], divided by sqrt(windows).

        Raises PrunebenchError where the method's ``statistics`` do not ask for it.
        """
        if self.norm is None:
            raise PrunebenchError(
                "the method reads `input_norm` without asking for it",
                hint='set `statistics = frozenset({"input_norm"})` in the method',
            )
        return self.norm


class _Enough(Exception):  # noqa: N818
    """Ends a forward when every input has been seen."""


def prune_linears(
    model: Any,
    method: LinearMethod,
    tokens: torch.Tensor | None,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Let ``method`` prune every linear of the decoder layers in place; tokens int64 [windows, length] or None."""
    parts = anatomy(model)
    if tokens is None:
        for index, layer in enumerate(parts.layers):
            for name, linear in parts.linears(layer).items():
                _prune(method, linear, LinearStats(index, name, generator))
            progress(index + 1, len(parts.layers))
        return
    batches, calls = capture(model, parts, tokens)
    for index, layer in enumerate(parts.layers):
        linears = parts.linears(layer)
        norms = _input_norms(layer, [linears[group[0]] for group in parts.inputs], calls[index], batches)
        for group, norm in zip(parts.inputs, norms, strict=True):
            if not bool(torch.isfinite(norm).all()):
                raise PrunebenchError(
                    f"layer {index}: the input of {group[0]} is not finite on the calibration windows",
                    hint="use float32, or look for a damaged checkpoint",
                )
            for name in group:
                _prune(method, linears[name], LinearStats(index, name, generator, norm))
        if index + 1 < len(parts.layers):  # nobody reads the last layer's output
            for batch, call in zip(batches, calls[index], strict=True):
                batch.copy_(run(layer, batch, call))
        progress(index + 1, len(parts.layers))


def _prune(method: LinearMethod, linear: nn.Linear, stats: LinearStats) -> None:
    try:
        method.prune_linear(linear.weight, stats)
    except PrunebenchError as error:
        raise PrunebenchError(f"layer {stats.layer}, {stats.name}: {error.message}", hint=error.hint) from error


def observe_layers(
    model: Any,
    tokens: torch.Tensor,
    see: Callable[[int, torch.Tensor, torch.Tensor], None],
    progress: Progress,
) -> None:
    """Call ``see(layer, before, after)`` for every layer and batch; states [windows of the batch, length, hidden]."""
    parts = anatomy(model)
    handles = []
    for index, layer in enumerate(parts.layers):

        def hook(_: Any, args: Any, kwargs: Any, output: Any, index: int = index) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            see(index, before, bare(output))

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        batches = batches_of(model, tokens)
        for done, batch in enumerate(batches):
            parts.decoder(batch, use_cache=False)
            progress(done + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()


def _input_norms(
    layer: nn.Module, tapped: list[nn.Linear], calls: list[Call], batches: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Norm of every input feature of the tapped linears, float32 [in] each: sqrt(sum over tokens of x^2 / windows).

    A running mean of squared norms, in the order of operations of Wanda's released code: near-ties between scores
    then fall as they do there, and one that falls otherwise would change all that comes after it.
    """
    means = [torch.zeros(linear.in_features, device=linear.weight.device) for linear in tapped]
    windows = [0] * len(tapped)
    seen = size = 0

    def tap(which: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal seen
            inputs = args[0].reshape(-1, args[0].shape[-1]).float()  # [tokens, in]; OPT gives its MLP two dimensions
            before, windows[which] = windows[which], windows[which] + size
            means[which].mul_(before / windows[which])
            means[which].add_(torch.linalg.vector_norm(inputs, dim=0) ** 2 / windows[which])
            seen += 1
            if seen == len(tapped):
                raise _Enough

        return hook

    handles = [linear.register_forward_pre_hook(tap(which)) for which, linear in enumerate(tapped)]
    try:
        for batch, call in zip(batches, calls, strict=True):
            seen, size = 0, len(batch)
            try:
                layer(batch, *call.args, **call.kwargs)
            except _Enough:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return [mean.sqrt_() for mean in means]
